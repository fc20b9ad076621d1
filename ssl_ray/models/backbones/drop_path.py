"""Stochastic depth: residual branches left out at random. Source: arXiv 1603.09382."""

from torch import Tensor


def dropped(branch: Tensor, rate: float, training: bool) -> Tensor:
    """A residual branch (B, ...), left out with probability `rate` per image in training, else divided by 1 - rate."""
    if not training or rate == 0:
        return branch
    rows = branch.new_empty(branch.shape[0], *[1] * (branch.ndim - 1))
    return branch * rows.bernoulli_(1 - rate) / (1 - rate)


def growing_rates(last: float, depth: int) -> list[float]:
    """Rates of `depth` blocks, growing linearly from 0 to `last`."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]
