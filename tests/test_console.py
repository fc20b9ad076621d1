import dataclasses
import json
import math
import os
import pickle
import re
import select
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ssl_ray.console import Console, TrainStatus, duration

STATUS = TrainStatus(
    step=120,
    total_steps=540,
    epoch=3,
    total_epochs=20,
    loss=4.1234,
    lr=0.021,
    images_per_second=1234.4,
    data_wait=0.031,
    eta=42.3,
)
LINE = "step 120/540 epoch 3/20 loss 4.123 lr 0.021 1,234 images/s data-wait 3 % eta 0:42"

RUN = """
import time
from ssl_ray.console import Console, TrainStatus
console = Console()
console.print("the recipe")
with console.progress(4, "moco") as progress:
    for step in range(1, 5):
        progress.update(TrainStatus(step, 4, 1, 1, 4.0 - step, 0.1))
        time.sleep(0.3)
        if step == 2:
            progress.note("epoch 1: kNN 81.2 %")
            print("printed by someone else")
console.warn("2 images are broken")
console.table("Results", ["run", "kNN"], [["moco [v2]", 0.812], ["raw pixels", 0.805]])
console.json_line({"knn": 0.812})
"""


def python(program: str, **streams: object) -> subprocess.Popen[bytes]:
    environment = {
        k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    }
    extra = streams.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[1],
        env=environment | {"TERM": "xterm-256color"} | extra,
        **streams,
    )


def on_terminal(program: str, columns: int = 80, **env: str) -> str:
    """What `program` sends to a real (pseudo) terminal."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    process = python(program, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    received = b""
    try:
        while select.select([ours], [], [], 60)[0]:
            try:
                block = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not block:
                break
            received += block
        assert process.wait(10) == 0, received.decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return received.decode()


def in_pipe(program: str, **env: str) -> tuple[str, str]:
    process = python(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    return out.decode(), err.decode()


def plain(text: str) -> str:
    """Without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_status_line() -> None:
    assert str(STATUS) == LINE


def test_status_line_without_what_is_not_known_yet() -> None:
    assert str(TrainStatus(1, 540, 1, 20, 6.93, 1e-5)) == "step 1/540 epoch 1/20 loss 6.930 lr 1e-05"


def test_status_survives_a_pickle_and_holds_builtins_only() -> None:
    assert pickle.loads(pickle.dumps(STATUS)) == STATUS
    assert {type(value) for value in dataclasses.asdict(STATUS).values()} <= {int, float}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (42.4, "0:42"),
        (725, "12:05"),
        (11045, "3:04:05"),
        (183845, "2d 03:04:05"),
        (math.inf, "?"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def lines_of(verbosity: str, statuses: list[tuple[float, TrainStatus]], path: Path) -> list[str]:
    """Lines that a log file gets when the statuses arrive at the given seconds."""
    now = 0.0
    with path.open("w") as file, Console(verbosity, err=file).progress(100, "moco", lambda: now) as progress:
        for at, status in statuses:
            now = at
            progress.update(status)
        progress.note("checkpoint written")
    return path.read_text().splitlines()


def at(step: int) -> TrainStatus:
    return TrainStatus(step, 100, 1, 1, 1.0, 0.1)


def test_log_file_gets_the_first_and_the_last_line_and_one_each_five_seconds(tmp_path: Path) -> None:
    statuses = [(0.1 * step, at(step)) for step in range(1, 101)]  # ten seconds
    lines = lines_of("normal", statuses, tmp_path / "log")
    steps = [int(match.group(1)) for line in lines if (match := re.search(r"step (\d+)/", line))]
    assert steps == [1, 51, 100]
    assert lines[0] == "moco: step 1/100 epoch 1/1 loss 1.000 lr 0.1"
    assert lines[-1] == "checkpoint written"


def test_log_file_gets_the_last_reading_of_a_run_that_ends_early(tmp_path: Path) -> None:
    lines = lines_of("normal", [(0, at(1)), (1, at(2)), (2, at(3))], tmp_path / "log")
    assert [line.split()[2] for line in lines if "step" in line] == ["1/100", "3/100"]


def test_quiet_shows_no_progress(tmp_path: Path) -> None:
    assert lines_of("quiet", [(0, at(1)), (9, at(100))], tmp_path / "log") == []


@pytest.mark.parametrize(
    ("verbosity", "out", "err"),
    [
        ("quiet", [], ["warning: w", "error: e"]),
        ("normal", ["p"], ["warning: w", "error: e"]),
        ("verbose", ["p"], ["d", "warning: w", "error: e"]),
    ],
)
def test_verbosity(
    verbosity: str, out: list[str], err: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(verbosity)
    console.print("p")
    console.detail("d")
    console.warn("w")
    console.error("e")
    captured = capsys.readouterr()
    assert (captured.out.splitlines(), captured.err.splitlines()) == (out, err)


def test_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    Console("quiet").json_line(
        {
            "status": STATUS,
            "knn": np.float32(0.5),
            "loss": math.nan,
            "path": Path("a/b"),
            "top": np.arange(2),
            3: (1,),
        }
    )
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    value = json.loads(out)
    assert value["status"]["step"] == 120
    del value["status"]
    assert value == {"knn": 0.5, "loss": None, "path": "a/b", "top": [0, 1], "3": [1]}


def test_table_in_a_pipe_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    Console("quiet").table(
        "Results", ["run", "kNN", "note"], [["moco", 0.8, "[v2]"], ["raw pixels", 12.5, None]]
    )
    assert capsys.readouterr().out.splitlines() == [
        "Results",
        "run          kNN  note",
        "moco         0.8  [v2]",
        "raw pixels  12.5",
    ]


@pytest.mark.process
def test_table_on_a_narrow_terminal_loses_nothing() -> None:
    program = """
    from ssl_ray.console import Console
    names = ["LatentCrossCorrelationHead", "CrossEntropyLoss", "MAEPretrainDecoder"]
    Console().table("Algorithms", ["name", "head", "loss", "neck"], [["moco_v3:PAPER_VIT_BASE", *names]])
    """
    below = plain(on_terminal(program, columns=60)).split("─")[-1].split()
    assert below[0] == "moco_v3:PAPER_VIT_BASE"
    assert sorted("".join(below[1:])) == sorted(
        "LatentCrossCorrelationHeadCrossEntropyLossMAEPretrainDecoder"
    )


HARMFUL = "\x1b[2Jgone\r\x07 \x9b31m \u202egpj.exe\udcff\nssl-ray: all is well"


@pytest.mark.process
@pytest.mark.parametrize("terminal", [True, False])
def test_no_text_steers_the_terminal(terminal: bool, capfd: pytest.CaptureFixture[str]) -> None:
    program = f"""
        from ssl_ray.console import Console
        console = Console()
        name = {HARMFUL!a}
        console.warn(name)
        console.error(name)
        console.print(name)
        console.table(name, [name], [[name]])
        """
    if terminal:
        shown = on_terminal(program)
    else:
        process = python(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        shown = process.communicate()[0].decode()
    assert "\\x1b[2Jgone\\r\\x07 \\x9b31m \\u202egpj.exe\\udcff" in shown
    for harmful in ("\x1b[2J", "\x07", "\x9b", "\u202e"):
        assert harmful not in shown
    # A result may have several lines; a warning is one.
    assert sum("warning" in line for line in shown.splitlines()) == 1
    (warning,) = (line for line in shown.splitlines() if "warning" in line)
    assert "all is well" in warning


def test_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table("Runs", ["id", "state"], [])
    assert capsys.readouterr().out.splitlines() == ["Runs", "id  state"]


@pytest.mark.process
def test_terminal_shows_a_bar_and_notes_above_it() -> None:
    shown = on_terminal(RUN)
    assert "\x1b[" in shown  # it moves the cursor
    text = plain(shown)
    assert "━" in text
    assert "step 4/4 epoch 1/1 loss 0.000 lr 0.1" in text
    assert text.count("epoch 1: kNN 81.2 %") == 1
    assert text.count("printed by someone else") == 1
    assert "100%" in text[text.rindex("moco ━") :]
    assert "moco [v2]" in text  # square brackets are not markup
    assert json.loads(text.strip().splitlines()[-1]) == {"knn": 0.812}


@pytest.mark.process
def test_results_while_the_bar_runs_are_above_it() -> None:
    program = """
    from ssl_ray.console import *
    console = Console()
    with console.progress(9, "moco") as progress:
        progress.update(TrainStatus(1, 9, 1, 1, 4.0, 0.1))
        console.print("said meanwhile")
        console.warn("careful")
        progress.update(TrainStatus(9, 9, 1, 1, 4.0, 0.1))
    """
    lines = [
        line.strip() for line in plain(on_terminal(program)).replace("\r", "\n").split("\n") if line.strip()
    ]
    assert "said meanwhile" in lines  # alone on its line
    assert "warning: careful" in lines
    assert lines[-1].startswith("step 9/9")


@pytest.mark.process
def test_terminal_of_forty_columns_does_not_wrap_the_status() -> None:
    program = f"""
    from ssl_ray.console import *
    with Console().progress(540, "moco") as progress:
        progress.update({STATUS!r})
    """
    text = plain(on_terminal(program, columns=40))
    assert "step 120/540 epoch 3/20 loss 4.123 lr" in text
    assert "images/s" not in text


@pytest.mark.process
def test_no_color_on_a_terminal() -> None:
    colours = r"\x1b\[[0-9;]*(3[0-7]|38;)[0-9;]*m"
    program = "from ssl_ray.console import Console; Console().warn('careful')"
    assert re.search(colours, on_terminal(program))
    assert not re.search(colours, on_terminal(program, NO_COLOR="1"))


@pytest.mark.process
def test_dumb_terminal_gets_plain_lines() -> None:
    text = on_terminal(RUN, TERM="dumb")
    assert "\x1b" not in text
    assert "moco: step 1/4" in text


@pytest.mark.process
@pytest.mark.parametrize("env", [{}, {"FORCE_COLOR": "1"}])
def test_pipe_gets_plain_lines_and_stdout_only_results(env: dict[str, str]) -> None:
    out, err = in_pipe(RUN, **env)
    assert "\x1b" not in out + err
    assert out.splitlines() == [
        "the recipe",
        "printed by someone else",
        "Results",
        "run           kNN",
        "moco [v2]   0.812",
        "raw pixels  0.805",
        '{"knn": 0.812}',
    ]
    assert err.splitlines() == [
        "moco: step 1/4 epoch 1/1 loss 3.000 lr 0.1",
        "epoch 1: kNN 81.2 %",
        "moco: step 4/4 epoch 1/1 loss 0.000 lr 0.1",
        "warning: 2 images are broken",
    ]
