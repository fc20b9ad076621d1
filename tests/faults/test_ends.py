"""However a run ends, its last line says why, its status is 2, and no process of it is left."""

import os
import shutil
import signal
import sqlite3
from pathlib import Path

import psutil
import pytest

from benchmarks.failing_runs import KINDS, Kind, fail, left_of, prepare, watched
from benchmarks.startup import MARK
from tests.runs import TINY, checkpoints, start, wait_for

pytestmark = pytest.mark.process

LONG = [*TINY, "--epochs=500", "--set=evaluation.every_epochs=null", "--set=training.checkpoint_steps=10"]


# A user's mistake comes the way of a gradient that is not finite.
OTHERS = [kind for kind in KINDS if kind.name != "mistake in a worker"]


@pytest.mark.parametrize("kind", OTHERS, ids=[kind.name for kind in OTHERS])
def test_a_run_that_fails_ends_with_the_reason(kind: Kind, tmp_path: Path) -> None:
    prepare(tmp_path)
    outcome = fail(kind, tmp_path, "run")
    assert outcome.right, outcome
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("FAILED",)]
        ((said,),) = store.execute("select value from tags where key = 'error'").fetchall()
    assert kind.reason in said


def processes(driver: int, name: str) -> list[psutil.Process]:
    """Descendants of the driver whose title holds a name."""
    found = []
    for child in psutil.Process(driver).children(recursive=True):
        try:
            if name in " ".join(child.cmdline())[:200]:
                found.append(child)
        except psutil.Error:  # it has just ended
            continue
    return found


@pytest.mark.parametrize("lost", ["raylet", "checkpoints"])
def test_what_cannot_go_on_says_why_and_leaves_nothing(lost: str, tmp_path: Path) -> None:
    process = start(tmp_path, "pretrain", "moco", *LONG, "--name=run", env={MARK: str(tmp_path)})
    watch = watched(process, str(tmp_path))
    folder, err = tmp_path / "runs" / "run", tmp_path / "err.txt"
    try:
        wait_for(lambda: checkpoints(folder), "first checkpoint", process)
        if lost == "raylet":
            (victim,) = [p for p in processes(process.pid, "raylet/raylet") if p.name() == "raylet"]
        else:
            for path in folder.glob("checkpoint_*_*"):
                shutil.rmtree(path, ignore_errors=True)
            (victim,) = processes(process.pid, "RayTrainWorker")
        victim.send_signal(signal.SIGKILL)
        assert process.wait(timeout=240) == 2, err.read_text()
    finally:
        process.kill()
        process.wait()
    last = err.read_text().splitlines()[-1]
    if lost == "raylet":
        assert last.startswith(
            "ssl-ray: Ray's raylet (a process of this command) is gone; all up to the last checkpoint"
        )
        assert last.endswith(f"continue with `ssl-ray pretrain --resume {folder}`")
    else:
        assert last.startswith("ssl-ray: ")
        assert "no earlier checkpoint is kept: begin again under another --name" in last
    assert "Traceback" not in err.read_text()
    assert left_of(watch) == []
    assert os.path.exists(folder / "error.txt")


def test_sigterm_while_the_run_starts(tmp_path: Path) -> None:
    process = start(tmp_path, "pretrain", "moco", *LONG, "--name=run", env={MARK: str(tmp_path)})
    watch = watched(process, str(tmp_path))
    err = tmp_path / "err.txt"
    try:
        wait_for(lambda: processes(process.pid, "raylet/raylet"), "Ray's start", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 130, err.read_text()
    finally:
        process.kill()
        process.wait()
    assert err.read_text().splitlines()[-1].startswith("ssl-ray: interrupted")
    assert left_of(watch) == []
