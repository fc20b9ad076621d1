"""A worker that hangs says where, and is started again."""

import signal
from pathlib import Path

import psutil
import pytest

from tests.conftest import ClusterProcess
from tests.runs import TINY, checkpoints, run, start, state, wait_for
from tests.training import local

pytestmark = pytest.mark.process

# Hangs once, in the middle: when it begins again the file is gone.
HANGS = """
import os, time
from dataclasses import replace
from ssl_ray.experiments import load
from ssl_ray.models import MoCo
from ssl_ray.spec import Spec


class Hangs(MoCo):
    def after_step(self, state, progress):
        if progress.step == 30 and os.path.exists({path!r}):
            os.remove({path!r})
            self.wait_for_a_lock_that_nobody_gives_back()
        super().after_step(state, progress)

    def wait_for_a_lock_that_nobody_gives_back(self):
        time.sleep(1e6)


SMALL = replace(load("moco").SMALL, algorithm=Spec(Hangs, **load("moco").SMALL.algorithm.kwargs))
"""
ARGUMENTS = [*TINY, "--steps=40", "--set=training.hang_minutes=0.1", "--set=training.checkpoint_steps=7"]


def test_a_step_that_never_ends_is_told_and_done_again(tmp_path: Path, two_cpus: str) -> None:
    once = tmp_path / "once"
    (tmp_path / "hangs.py").write_text(HANGS.format(path=str(once)))
    arguments = [*ARGUMENTS, "--set=evaluation.every_epochs=null"]
    still = local.train(local.job_of(str(tmp_path / "hangs.py"), *arguments), tmp_path / "still")

    once.touch()
    done = run(tmp_path, "pretrain", "hangs.py", *arguments, "--name=hangs", f"--address={two_cpus}")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "hangs"
    stacks = folder / "hung-worker-0.txt"
    assert "worker 0 took more than 0.1 min for a step (training.hang_minutes)" in done.stderr
    assert str(stacks) in done.stderr
    assert "worker 0 failed: its process is gone" in done.stderr
    assert "training goes on from step 28 on 1 worker" in done.stderr
    assert "Traceback" not in done.stderr
    assert "in wait_for_a_lock_that_nobody_gives_back" in stacks.read_text()

    local.assert_same(state(folder / checkpoints(folder)[-1]), still.last["algorithm"])


def test_a_worker_that_is_stopped_is_killed_and_started_again(
    tmp_path: Path, two_cpus: str, two_cpus_process: ClusterProcess
) -> None:
    """Nothing in a stopped process can tell that it hangs: Ray Train's controller does, whom it does not answer."""
    there = ["--set=training.hang_minutes=0.5", "--set=training.checkpoint_steps=10", "--epochs=6"]
    quick = ["--set=evaluation.every_epochs=null", "--name=stopped", f"--address={two_cpus}"]
    process = start(tmp_path, "pretrain", "moco", *TINY, *there, *quick)
    folder, err = tmp_path / "runs" / "stopped", tmp_path / "err.txt"
    try:
        wait_for(lambda: checkpoints(folder), "first checkpoint", process)
        (worker,) = [
            child
            for child in psutil.Process(two_cpus_process.process.pid).children(recursive=True)
            if "RayTrainWorker" in " ".join(child.cmdline())
        ]
        worker.send_signal(signal.SIGSTOP)
        assert process.wait(timeout=300) == 0, err.read_text()
    finally:
        process.kill()
        process.wait()
    said = err.read_text()
    assert "worker 0 failed: it did not answer within training.hang_minutes" in said
    assert "training goes on from step " in said
    assert "Traceback" not in said
    assert not worker.is_running()
