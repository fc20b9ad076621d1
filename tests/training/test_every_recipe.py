"""Every SMALL recipe takes two steps, as it travels to a worker, and its checkpoint is taken up again."""

import math
import pickle
from pathlib import Path

import pytest

from ssl_ray import experiments
from ssl_ray.console import TrainStatus
from ssl_ray.data.source import Dataset
from ssl_ray.training.events import Begun
from tests import small
from tests.training import local

FEW = ["training.global_batch_size=32", "training.log_steps=1", "evaluation.every_epochs=null"]


@pytest.mark.parametrize("name", experiments.names())
def test_two_steps(name: str, tmp_path: Path) -> None:
    images = Dataset(small.source(), None)
    for steps in (1, 2):
        job = local.job(experiments.load(name).SMALL, [*FEW, f"training.max_steps={steps}"], dataset=images)
        run = local.train(pickle.loads(pickle.dumps(job)), tmp_path)
        assert run.summary["steps"] == steps
        (reading,) = [message for message in run.messages if isinstance(message, TrainStatus)]
        assert math.isfinite(reading.loss)
        assert [m.step for m in run.messages if isinstance(m, Begun)] == [steps - 1]
    assert run.said == []
    assert run.saved_steps == [1, 2]
