"""Draws of a few labelled images: n of each class, or a share of all labels, the same ones for the same seed."""

from collections.abc import Callable

import torch
from torch import Tensor


def n_shot(labels: Tensor, n: int, seed: int) -> Tensor:
    """Indices of n images of each class, ascending. A draw of fewer is part of a draw of more, for the same seed."""
    return _draw(labels, lambda _: n, seed)


def share_of(labels: Tensor, share: float, seed: int) -> Tensor:
    """Indices of a share of each class's images, at least one of each."""
    return _draw(labels, lambda count: max(1, round(share * count)), seed)


def smallest_class(labels: Tensor) -> int:
    """Images of the class that has fewest, of those that have any."""
    counts = torch.bincount(labels)
    return int(counts[counts > 0].min())


def _draw(labels: Tensor, wanted: Callable[[int], int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in torch.bincount(labels).nonzero().flatten().tolist():
        rows = torch.nonzero(labels == label).flatten()
        chosen.append(rows[torch.randperm(len(rows), generator=generator)][: wanted(len(rows))])
    return torch.cat(chosen).sort().values
