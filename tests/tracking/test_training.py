"""What the training loop logs, as MLflow has it: which metrics, of which steps, with which values."""

import math
from pathlib import Path

import pytest

from ssl_ray.console import TrainStatus
from ssl_ray.tracking import TrackingSettings, TrackingTarget, open_run
from ssl_ray.tracking.client import connect
from tests.tracking.conftest import history
from tests.training import local
from tests.training.local import STEPS, STEPS_PER_EPOCH


@pytest.fixture
def target(settings: TrackingSettings) -> TrackingTarget:
    """A run that has begun in the shared store."""
    return open_run(settings, name="run", params={}, tags={}).target


def test_readings_are_of_every_few_steps_and_the_last(target: TrackingTarget, tmp_path: Path) -> None:
    often = local.train(local.job("moco"), tmp_path / "often")
    readings = {m.step: m for m in often.messages if isinstance(m, TrainStatus)}
    assert list(readings) == list(range(1, STEPS + 1))

    settings = ["training.log_steps=5", "evaluation.every_epochs=1"]
    run = local.train(local.job("moco", settings), tmp_path / "run", tracking=target)
    assert STEPS == 12
    logged = [5, 10, 12]
    for name, value in (("train/loss", "loss"), ("train/lr", "lr")):
        expected = [(step, pytest.approx(getattr(readings[step], value))) for step in logged]
        assert history(target, name) == expected, name
    assert [m.step for m in run.messages if isinstance(m, TrainStatus)] == logged
    for name in ("perf/images_per_second", "perf/step_time", "perf/data_wait", "train/grad_norm"):
        assert [step for step, _ in history(target, name)] == logged, name
    assert all(0 <= share <= 1 for _, share in history(target, "perf/data_wait"))
    for rate, seconds in zip(
        history(target, "perf/images_per_second"), history(target, "perf/step_time"), strict=True
    ):
        assert rate[1] == pytest.approx(local.BATCH / seconds[1])


def test_evaluations_are_of_their_steps(target: TrackingTarget, tmp_path: Path) -> None:
    run = local.train(local.job("moco", ["evaluation.every_epochs=1"]), tmp_path, tracking=target)
    evaluations = run.summary["evaluations"]
    steps = [0, STEPS_PER_EPOCH, STEPS]
    assert [e["step"] for e in evaluations] == steps
    measured = {name for e in evaluations for name in e if "/" in name}
    assert {"val/knn_top1", "val/linear_top1", "embedding/std", "projection/rankme"} <= measured
    for name in measured:
        expected = [(e["step"], pytest.approx(e[name], nan_ok=True)) for e in evaluations if name in e]
        assert history(target, name) == expected, name
    for name in ("collapse/alarms", "collapse/not_finite", "perf/evaluation_time"):
        assert [step for step, _ in history(target, name)] == steps, name
    assert history(target, "data/broken_images") == [(STEPS, 0)]

    names = set(connect(target.uri).get_run(target.run_id).data.metrics)
    assert {name.partition("/")[0] for name in names} == {
        "train",
        "perf",
        "data",
        "collapse",
        *(name.partition("/")[0] for name in measured),
    }


def test_a_continued_run_goes_on_in_the_same_record(target: TrackingTarget, tmp_path: Path) -> None:
    local.train(local.job("moco", ["training.max_steps=5"]), tmp_path, tracking=target)
    local.train(local.job("moco"), tmp_path, tracking=target)
    assert [step for step, _ in history(target, "train/loss")] == list(range(1, STEPS + 1))
    assert all(math.isfinite(loss) for _, loss in history(target, "train/loss"))
