"""Runs that are made to collapse, one in each way: the alarm names it; the same runs left whole raise none."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_ray.data.source import open_dataset
from ssl_ray.data.sources.base import Subset
from ssl_ray.evaluation.alarm import collapses
from ssl_ray.evaluation.online import OnlineEvaluation
from ssl_ray.models import CrossCorrelationLoss, LatentPredictHead, Progress, SwAVLoss
from ssl_ray.recipe import Recipe
from ssl_ray.spec import Spec
from ssl_ray.training.optim import build_optimizer
from ssl_ray.training.step import begin_epoch, take_step
from tests import small

ROWS, IMAGES = 64, 256
NARROW = {"algorithm.backbone.width": 8, "algorithm.neck.in_channels": 64, "views.size": 16}


class WithGradient(LatentPredictHead):
    """SimSiam's head without the stop-gradient."""

    def forward(self, projection: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.predictor((projection,)), target)
        return loss


class Unbalanced(SwAVLoss):
    """SwAV's codes without Sinkhorn: nothing shares the prototypes out."""

    def codes(self, scores: Tensor, queued: Tensor | None = None, use_queue: Tensor | None = None) -> Tensor:
        return (scores[:, list(self.crops_for_assign)] / self.epsilon).softmax(-1)


class Alike(CrossCorrelationLoss):
    """Barlow Twins' loss with the wrong sign off the diagonal: all features should agree."""

    def forward(self, correlation: Tensor) -> Tensor:
        return (1 - correlation).square().mean() * len(correlation)


def train(recipe: Recipe, steps: int, looks: int) -> list[dict[str, float]]:
    """Evaluations before the first step and `looks` times on the way."""
    source = small.source(IMAGES)
    held_out = Subset(open_dataset("fashion").train, 2000, 2000 + IMAGES)
    torch.manual_seed(0)
    algorithm = recipe.algorithm.build()
    assert recipe.optimization.lr is not None
    optimizer = build_optimizer(
        recipe.optimization.optimizer, algorithm.param_groups(), recipe.optimization.lr
    )
    evaluation = OnlineEvaluation(
        source,
        held_out,
        size=recipe.views.build().eval_size,
        monitors=("std", "rankme", "top_direction", "clusters"),
    )
    evaluations = [{"step": 0} | evaluation.run(algorithm, trained=False)]
    extract = small.extract(recipe, algorithm, IMAGES)
    epochs = [small.batch(recipe, IMAGES, epoch) for epoch in range(2)]
    per_epoch = IMAGES // ROWS
    for step in range(steps):
        progress = Progress(step, steps, step // per_epoch, steps // per_epoch + 1)
        if step % per_epoch == 0:
            begin_epoch(algorithm, optimizer, progress, extract)
        views, samples = epochs[progress.epoch % 2]
        rows = slice(step % per_epoch * ROWS, (step % per_epoch + 1) * ROWS)
        batch = {key: value[rows] for key, value in samples.items()}
        take_step(algorithm, algorithm, optimizer, [view[rows] for view in views], batch, progress)
        if (step + 1) % (steps // looks) == 0:
            evaluations.append({"step": step + 1} | evaluation.run(algorithm))
    return evaluations


def settings_of(name: str) -> dict[str, Any]:
    """Narrow, and for SwAV its small crops smaller and no queue."""
    swav = {"views.small_size": 12, "algorithm.queue_size": 0, "algorithm.freeze_prototypes_epochs": 0}
    return NARROW | (swav if name == "swav" else {})


def broken(name: str, path: str, target: type) -> Recipe:
    """The recipe with another class, and the same arguments, at `path` below the algorithm."""
    part = small.recipe(name, ROWS, settings_of(name), IMAGES).algorithm
    for step in path.split("."):
        part = part.kwargs[step]
    arguments = {} if target is Alike else part.kwargs
    return small.recipe(
        name, ROWS, settings_of(name) | {f"algorithm.{path}": Spec(target, **arguments)}, IMAGES
    )


@pytest.mark.parametrize(
    ("kind", "name", "path", "target", "steps", "reading"),
    [
        ("complete", "simsiam", "head", WithGradient, 100, "projection/std"),
        ("dimensional", "barlow_twins", "head.loss", Alike, 40, "projection/top_direction"),
        ("cluster", "swav", "head.loss", Unbalanced, 20, "one cluster holds 100.0 %"),
    ],
)
def test_the_alarm_names_the_collapse(
    kind: str, name: str, path: str, target: type, steps: int, reading: str
) -> None:
    evaluations = train(broken(name, path, target), steps, looks=5)
    (alarm,) = collapses(evaluations)
    assert (alarm.kind, reading in str(alarm)) == (kind, True), alarm
    assert alarm.healthy is not None
    assert 0 <= alarm.healthy < alarm.since <= steps
    before = [e for e in evaluations if e["step"] <= alarm.healthy]
    assert kind not in [a.kind for a in collapses(before)]


@pytest.mark.parametrize("name", ["simsiam", "barlow_twins", "swav"])
def test_whole_they_raise_none(name: str) -> None:
    evaluations = train(small.recipe(name, ROWS, settings_of(name), IMAGES), 40, looks=2)
    for seen in range(1, 4):
        assert collapses(evaluations[:seen]) == []
