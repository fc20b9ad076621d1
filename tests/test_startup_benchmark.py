"""The benchmark of a command's start sees all of a run: its lines, its end, and processes that nobody waits for."""

import sys
import time
from pathlib import Path

import pytest

from benchmarks.startup import COMMANDS, Bench, Command, Run, Share, Tree, phases_of, ratio

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Burns CPU in a process of its own session whose parent is gone, as Ray's are after `ray start`.
DETACHED = """
import subprocess, sys, time
burn = "import time; block = bytearray(50 * 2**20)\\nwhile time.process_time() < 0.6: pass\\ntime.sleep(0.5)"
between = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
subprocess.run([sys.executable, "-c", between, burn])
print("moco: ready", flush=True)
time.sleep(0.5)
print("first steps logged 1.0 s after the command", file=sys.stderr, flush=True)
"""


def bench(folder: Path, script: str, *, memory: bool = False) -> tuple[Bench, Tree]:
    (folder / "bin").mkdir()
    (folder / "bin" / "ssl-ray").write_text(script)
    command = Command(("pretrain",), {"ready": r"\w+: ready"})
    return Bench(folder, command, memory), Tree("tree", folder, folder / "bin" / "ssl-ray")


@linux
@pytest.mark.process
def test_all_processes_of_a_run_are_counted(tmp_path: Path) -> None:
    measured, tree = bench(tmp_path, DETACHED)
    started = time.monotonic()
    run = measured.measure(tree)
    seconds = time.monotonic() - started
    assert list(run.phases) == ["first line", "ready", "first steps logged", "end"]
    assert run.phases["ready"] < run.phases["first steps logged"] <= run.end < run.gone_s <= seconds
    assert 0.5 < run.cpu["time"].amount < 0.8
    assert run.cpu_s < 2 * seconds + 1
    assert not run.memory


@linux
@pytest.mark.process
def test_memory_at_its_peak(tmp_path: Path) -> None:
    measured, tree = bench(tmp_path, DETACHED, memory=True)
    run = measured.measure(tree)
    assert run.memory["time"].count == 1
    assert 50 < run.memory["time"].amount < 80
    assert run.peak_mb >= run.memory["time"].amount


@linux
@pytest.mark.process
def test_a_run_that_fails(tmp_path: Path) -> None:
    measured, tree = bench(tmp_path, "import sys; print('why'); sys.exit(2)")
    with pytest.raises(
        SystemExit, match=r"`ssl-ray pretrain` of tree ended with status 2; last lines:\n  why$"
    ):
        measured.measure(tree)


def test_phases_are_the_first_lines_that_tell_of_them() -> None:
    lines = [
        (1.0, "simclr (SMALL of simclr) on fashion: 7,000 images"),
        (9.0, "trial-0 finished after 1 epochs, kNN top-1 70.0 %: lr 1"),
        (11.0, "trial-1 stopped after 1 epochs, kNN top-1 60.0 %: lr 2"),
        (15.0, "trial-2 finished after 1 epochs, kNN top-1 70.0 %: lr 3"),
        (16.0, "best:   ssl-ray pretrain best.json"),
    ]
    phases = phases_of(COMMANDS["tune"], lines)
    assert phases == {
        "first line": 1.0,
        "recipe resolved": 1.0,
        "trial 1 ended": 9.0,
        "trial 2 ended": 11.0,
        "trial 3 ended": 15.0,
        "results": 16.0,
    }
    assert Run("tree", phases, 17.0, {}, {}).trial_s == 3.0


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is twice as slow in a round changes nothing."""
    pairs = [
        tuple(Run("tree", {"end": seconds}, seconds, {"driver": Share(1, seconds)}, {}) for seconds in both)
        for both in ((10.0, 5.0), (20.0, 10.0), (80.0, 40.0))
    ]
    assert ratio(pairs, lambda run: run.end) == 0.5
    assert ratio(pairs, lambda run: run.phases.get("none")) is None
