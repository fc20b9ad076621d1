"""The learning rate as a pure function of `Progress`: nothing to save, nothing to restore."""

import math
from typing import TYPE_CHECKING

from ssl_ray.models.base import Progress

if TYPE_CHECKING:
    from ssl_ray.recipe import Optimization


def cosine(start: float, end: float, fraction: float) -> float:
    """Half a cosine from `start` (fraction 0) to `end` (fraction 1). Source: SGDR, arXiv 1608.03983, eq. 5."""
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


def warmup_steps(warmup_epochs: float, progress: Progress) -> int:
    """Optimiser steps that the warm-up takes: its share of the run's epochs, in steps."""
    return round(warmup_epochs / progress.total_epochs * progress.total_steps)


def learning_rate(optimization: "Optimization", progress: Progress) -> float:
    """Learning rate of step `progress.step`.

    Linear warm-up from `warmup_start * lr` (first step) to `lr` (last warm-up step), then over the remaining steps
    half a cosine to `final_lr`, or a factor `gamma` at each of the epochs `milestones`, or constant. Everything but the
    milestones moves once per step. Needs the resolved `optimization.lr`.
    """
    peak = optimization.lr
    assert peak is not None, "the recipe is not resolved: optimization.lr is None"
    warmup = warmup_steps(optimization.warmup_epochs, progress)
    if progress.step < warmup:
        fraction = progress.step / max(warmup - 1, 1)
        return peak * (optimization.warmup_start + (1 - optimization.warmup_start) * fraction)
    if optimization.schedule == "cosine":
        fraction = (progress.step - warmup) / (progress.total_steps - warmup)
        return cosine(peak, optimization.final_lr, fraction)
    if optimization.schedule == "step":
        passed = sum(progress.epoch >= milestone for milestone in optimization.milestones)
        return float(peak * optimization.gamma**passed)
    return peak
