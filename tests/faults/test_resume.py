"""A run that is killed and resumed on another number of workers ends as one that nobody killed.

On the same number it does so to the last bit: see tests/training/test_resume.py. A file of the user's says when the
moment has come, and waits there for the end.
"""

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.runs import checkpoints, run, start, state, summary, wait_for
from tests.training import local

pytestmark = pytest.mark.cluster

STEPS_PER_EPOCH = 1297 // 64
STEPS = 2 * STEPS_PER_EPOCH
EVERY = 9  # a checkpoint after so many steps
KILLED = STEPS_PER_EPOCH + 10  # in mid-epoch, its queue in use

# In double precision. In single, AdamW makes whole steps of what rounding leaves of a gradient that is zero: two runs
# on one worker, 1e-7 apart in the first layer's weights, are 24 % apart in a bias after these steps.
WAITING = """
import json
import time
from dataclasses import replace
from pathlib import Path

from ssl_ray.experiments import load
from ssl_ray.models import SwAV
from ssl_ray.models.preprocessing import DataPreprocessor
from ssl_ray.spec import Spec

MOMENT = Path(__file__).with_name("moment.json")


class Double(DataPreprocessor):
    def forward(self, views):
        return [view.double() for view in super().forward(views)]


class WaitingSwAV(SwAV):
    def __init__(self, *modules, queue_size, **rest):
        super().__init__(*modules, queue_size=queue_size, data_preprocessor=Double(), **rest)
        self.double()

    def before_step(self, progress):
        super().before_step(progress)
        if MOMENT.exists() and json.loads(MOMENT.read_text()) == progress.step:
            MOMENT.with_name("now").touch()
            time.sleep(600)


SMALL = replace(load("swav").SMALL, algorithm=Spec(WaitingSwAV, **load("swav").SMALL.algorithm.kwargs))
"""
ARGUMENTS = [
    "--data=digits",
    "--set=views.size=16",
    "--set=views.small_size=12",
    "--set=algorithm.backbone.width=8",
    "--set=algorithm.neck.in_channels=64",
    "--set=algorithm.queue_size=128",
    "--set=evaluation.every_epochs=null",
    "--set=training.checkpoint_minutes=null",
    f"--set=training.checkpoint_steps={EVERY}",
    "--epochs=2",
]


def test_two_workers_before_the_kill_and_one_after_it(tmp_path: Path, two_cpus: str) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    undisturbed = local.train(local.job_of(str(tmp_path / "waiting.py"), *ARGUMENTS), tmp_path / "still")
    assert undisturbed.summary["steps"] == STEPS

    (tmp_path / "moment.json").write_text(json.dumps(KILLED))
    there = f"--address={two_cpus}"
    process = start(tmp_path, "pretrain", "waiting.py", *ARGUMENTS, "--workers=2", "--name=killed", there)
    try:
        wait_for((tmp_path / "now").exists, f"step {KILLED}", process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (tmp_path / "moment.json").unlink()
    kept = tmp_path / "runs" / "killed"
    at = torch.load(kept / checkpoints(kept)[-1] / "checkpoint.pt", weights_only=True)["next_step"]
    assert at == KILLED // EVERY * EVERY < KILLED, "something has to be done again"
    resumed = summary(run(tmp_path, "pretrain", "--resume=killed", "--workers=1", "--json", there))
    assert resumed["steps"] == STEPS

    ours, theirs = state(resumed["checkpoint"]), undisturbed.last["algorithm"]
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        # Only the order of sums differs, for 27 steps.
        distance = (ours[key].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-12)
        assert distance < 1e-9, f"{key}: {distance:.2g}"
