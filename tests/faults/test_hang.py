"""A worker that hangs says where, and is started again."""

from pathlib import Path

import pytest

from tests.runs import TINY, checkpoints, run, state

pytestmark = pytest.mark.slow

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
    there = [*ARGUMENTS, "--set=evaluation.every_epochs=null", f"--address={two_cpus}"]
    still = run(tmp_path, "pretrain", "hangs.py", *there, "--name=still")
    assert still.returncode == 0, still.stderr

    once.touch()
    done = run(tmp_path, "pretrain", "hangs.py", *there, "--name=hangs")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "hangs"
    stacks = folder / "hung-worker-0.txt"
    assert "worker 0 took more than 0.1 min for a step (training.hang_minutes)" in done.stderr
    assert str(stacks) in done.stderr
    assert "worker 0 failed: its process is gone" in done.stderr
    assert "training goes on from step 28 on 1 worker" in done.stderr
    assert "Traceback" not in done.stderr
    assert "in wait_for_a_lock_that_nobody_gives_back" in stacks.read_text()

    ours, theirs = (state(f / checkpoints(f)[-1]) for f in (folder, tmp_path / "runs" / "still"))
    assert all(ours[name].equal(tensor) for name, tensor in theirs.items())
