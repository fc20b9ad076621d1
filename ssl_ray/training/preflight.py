"""Before anything starts: can this recipe's views, algorithm and optimiser be made, and do their shapes fit."""

import copy
import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch._subclasses import FakeTensorMode

from ssl_ray.data.pipeline import ViewPipeline
from ssl_ray.errors import MISTAKES, UserError
from ssl_ray.interop.weights import load_backbone
from ssl_ray.models.base import BaseModel
from ssl_ray.models.meta import without_memory
from ssl_ray.recipe import Recipe
from ssl_ray.training.optim import build_optimizer

T = TypeVar("T")

# Enough for batch norm over parts of a batch; few enough for a CPU.
_MAX_ROWS = 16


def preflight(recipe: Recipe, *, from_checkpoint: bool = False) -> None:
    """Builds a resolved recipe's parts and takes one loss of blank images, in tensors without memory: a second or two.

    What fails so is tried again with real tensors, for a user's module may ask for their values. Pretrained weights are
    read, and loaded into the backbone alone; from_checkpoint they are not, for it holds what has become of them.

    Raises UserError naming the part of the recipe that does not work: a worker would meet the same mistake only after
    Ray has started, and again at each restart.
    """
    pipeline: ViewPipeline = _judge("views", recipe.views.build)
    _judge("views", lambda: _views_of_blank(pipeline))
    logging.getLogger(FakeTensorMode.__module__).setLevel(logging.CRITICAL)  # we say it ourselves
    try:
        with without_memory():
            algorithm = _build(recipe)
            backbone = copy.deepcopy(algorithm.backbone)
        # Unlike the meta device's these tensors say that they are on a CPU, which autocast wants to hear.
        with FakeTensorMode(allow_non_fake_inputs=True):
            _take_loss(recipe, pipeline, algorithm.to_empty(device="cpu"))
    except MISTAKES:
        algorithm = _build(recipe)
        _take_loss(recipe, pipeline, algorithm)
        backbone = algorithm.backbone
    pretrained = recipe.algorithm.kwargs.get("pretrained")
    if isinstance(pretrained, str) and not from_checkpoint:
        # Memory that nothing has written to yet costs nothing.
        _judge("algorithm.pretrained", lambda: load_backbone(backbone.to_empty(device="cpu"), pretrained))


def _views_of_blank(pipeline: ViewPipeline) -> None:
    side = max(pipeline.sizes)
    out = {name: np.zeros((1, *column.shape), column.dtype) for name, column in pipeline.columns.items()}
    pipeline.write_image(np.zeros((side, side, 3), np.uint8), seed=0, epoch=0, index=0, out=out, row=0)


def _build(recipe: Recipe) -> BaseModel:
    optimizer = recipe.optimization.optimizer
    algorithm: BaseModel = _judge("algorithm", recipe.untrained.build)
    _judge("optimization.optimizer", lambda: build_optimizer(optimizer, algorithm.param_groups(), lr=0.1))
    return algorithm


@torch.no_grad()
def _take_loss(recipe: Recipe, pipeline: ViewPipeline, algorithm: BaseModel) -> None:
    rows = min(_MAX_ROWS, recipe.training.global_batch_size)
    samples = {
        name: torch.zeros(rows, *column.shape, dtype=getattr(torch, column.dtype))
        for name, column in pipeline.columns.items()
    }
    samples["index"] = torch.arange(rows)
    if algorithm.needs_labels:
        samples["label"] = torch.zeros(rows, dtype=torch.int64)
    views = [samples.pop(f"view_{i}").permute(0, 3, 1, 2) for i in range(len(pipeline.sizes))]
    _judge("algorithm: its parts do not fit", lambda: algorithm(views, samples, mode="loss"))


def _judge(part: str, call: Callable[[], T]) -> T:
    """The result of a call; what goes wrong in it is told as a mistake in `part` of the recipe."""
    try:
        return call()
    except UserError as error:
        raise UserError(f"{part}: {error}") from error
    except MISTAKES as error:
        said = str(error) or type(error).__name__
        raise UserError(f"{part}: {said}; `ssl-ray show` lists every value, --set changes one") from error
