"""Before anything starts: can this recipe's views, algorithm and optimiser be made, and do their shapes fit."""

import copy
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from ssl_ray.data.pipeline import ViewPipeline
from ssl_ray.errors import MISTAKES, UserError
from ssl_ray.interop.weights import load_backbone
from ssl_ray.models.base import BaseModel
from ssl_ray.models.meta import without_memory
from ssl_ray.paths import CHANGE, Mistakes, build_at
from ssl_ray.recipe import Recipe
from ssl_ray.training.optim import build_optimizer
from ssl_ray.training.rows import (
    Share,
    require_groups,
    require_rows,
    require_values,
    shares,
    split,
    watch_batch_norm,
)

T = TypeVar("T")

# Few enough for a CPU; more where they are dealt to many groups.
_MANY_ROWS = 16
_GIB = 2**30
_MOST_OF_AN_IMAGE = _GIB
_MOST_OF_A_MODEL = 1024 * _GIB  # gradients and what the optimiser keeps come on top: no device has as much
# Tried as they are: quicker than torch's import of what it needs for tensors without memory, its compiler.
_SMALL_MODEL, _SMALL_IMAGE = 2**26, 64
_MOST_HERE = 4 * _GIB  # the machine that starts a run may be smaller than those that train


def preflight(recipe: Recipe, sizes: Sequence[int] = (1,), *, from_checkpoint: bool = False) -> None:
    """Builds a resolved recipe's parts and takes one loss of blank images, in tensors without memory: a second or two.

    Small ones are tried as they are, and so is what fails without memory, for a user's module may ask for values.
    Pretrained weights are read, and loaded into the backbone alone; from_checkpoint they are not, for it holds what has
    become of them. sizes: numbers of workers that the group may have; in none of them a worker may get too few images
    at once.

    Raises UserError naming the part of the recipe that does not work: a worker would meet the same mistake only after
    Ray has started, and again at each restart.
    """
    smallest, *_ = per_worker = shares(recipe, sizes)
    for share in per_worker:  # before a loss is taken of as many rows as there are groups
        require_groups(recipe, share)
    pipeline: ViewPipeline = build_at(recipe.views, "views")
    _judge("views", lambda: _views_of_blank(pipeline))
    size = 0
    try:
        with without_memory():
            algorithm = _build(recipe, UserError)
            size = _size(algorithm)
            backbone = copy.deepcopy(algorithm.backbone)
        if size <= _SMALL_MODEL and max(pipeline.sizes) <= _SMALL_IMAGE:
            algorithm = _build(recipe)
            starved = _take_loss(recipe, pipeline, algorithm, smallest)
        else:
            starved = _take_fake_loss(recipe, pipeline, algorithm, smallest)
    except UserError:
        raise
    except MISTAKES:
        if size > _MOST_HERE:
            return
        algorithm = _build(recipe)
        starved = _take_loss(recipe, pipeline, algorithm, smallest)
        backbone = algorithm.backbone
    for share in per_worker:
        require_rows(recipe, algorithm, share)
    require_values(recipe, smallest, starved)
    pretrained = recipe.algorithm.kwargs.get("pretrained")
    if isinstance(pretrained, str) and not from_checkpoint:
        # Memory that nothing has written to yet costs nothing.
        _judge("algorithm.pretrained", lambda: load_backbone(backbone.to_empty(device="cpu"), pretrained))


def _views_of_blank(pipeline: ViewPipeline) -> None:
    columns = pipeline.columns
    size = sum(math.prod(column.shape) * np.dtype(column.dtype).itemsize for column in columns.values())
    if size > _MOST_OF_AN_IMAGE:
        raise UserError(
            f"{size / _GIB:,.1f} GiB for one image; lower the size of its views or how many there are"
        )
    side = max(pipeline.sizes)
    out = {name: np.zeros((1, *column.shape), column.dtype) for name, column in columns.items()}
    pipeline.write_image(np.zeros((side, side, 3), np.uint8), seed=0, epoch=0, index=0, out=out, row=0)


def _build(recipe: Recipe, told: Mistakes = MISTAKES) -> BaseModel:
    optimizer = recipe.optimization.optimizer
    algorithm: BaseModel = build_at(recipe.untrained, "algorithm", told)
    _judge(
        "optimization.optimizer", lambda: build_optimizer(optimizer, algorithm.param_groups(), lr=0.1), told
    )
    return algorithm


def _size(algorithm: nn.Module) -> int:
    """Bytes of weights and buffers. Raises UserError, naming the largest, where no machine has as many."""
    tensors = dict(itertools.chain(algorithm.named_parameters(), algorithm.named_buffers()))
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > _MOST_OF_A_MODEL:
        name, largest = max(tensors.items(), key=lambda item: item[1].nbytes)
        raise UserError(
            f"algorithm: {size / _GIB:,.0f} GiB of weights and buffers, more than a worker can hold; the largest is "
            f"algorithm.{name}, {' x '.join(map(str, largest.shape))}; lower what makes it so large"
        )
    return size


def _take_fake_loss(recipe: Recipe, pipeline: ViewPipeline, algorithm: BaseModel, share: Share) -> list[str]:
    """`_take_loss` without memory; what fails in it is told by who calls."""
    from torch._subclasses import FakeTensorMode

    logging.getLogger(FakeTensorMode.__module__).setLevel(logging.CRITICAL)
    # Unlike the meta device's these tensors say that they are on a CPU, which autocast wants to hear.
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _take_loss(recipe, pipeline, algorithm.to_empty(device="cpu"), share, UserError)


@torch.no_grad()
def _take_loss(
    recipe: Recipe, pipeline: ViewPipeline, algorithm: BaseModel, share: Share, told: Mistakes = MISTAKES
) -> list[str]:
    """Of as many rows as a worker takes at once, or many. Returns what `watch_batch_norm` does."""
    _, groups = split(recipe)
    rows = groups * min(max(1, share.rows // groups), max(2, _MANY_ROWS // groups))
    starved = watch_batch_norm(recipe, algorithm, share)
    samples = {
        name: torch.zeros(rows, *column.shape, dtype=getattr(torch, column.dtype))
        for name, column in pipeline.columns.items()
    }
    samples["index"] = torch.arange(rows)
    if algorithm.needs_labels:
        samples["label"] = torch.zeros(rows, dtype=torch.int64)
    views = [samples.pop(f"view_{i}").permute(0, 3, 1, 2) for i in range(len(pipeline.sizes))]
    _judge("algorithm: its parts do not fit", lambda: algorithm(views, samples, mode="loss"), told)
    return starved


def _judge(part: str, call: Callable[[], T], told: Mistakes = MISTAKES) -> T:
    """The result of a call; what goes wrong in it is told as a mistake in `part` of the recipe."""
    try:
        return call()
    except told as error:
        said = error if isinstance(error, UserError) else f"{str(error) or type(error).__name__}; {CHANGE}"
        raise UserError(f"{part}: {said}") from error
