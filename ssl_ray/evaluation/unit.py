"""Features at unit length, and which of them have a length at all: a network that has diverged gives others."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_ray import distributed


def finite_rows(z: Tensor) -> Tensor:
    """True for each row of z (..., D) that is finite, and its length in float32 too: entries up to some 1e18.

    Any other has no direction, hence no neighbours and no class.
    """
    finite: Tensor = z.float().norm(dim=-1).isfinite()
    return finite


def unit(z: Tensor) -> Tensor:
    """The rows of z (..., D) at length 1 in float32; NaN, rather than 0, for those that `finite_rows` leaves out."""
    return F.normalize(z.float(), dim=-1).masked_fill(~finite_rows(z)[..., None], torch.nan)


@torch.no_grad()
def count_not_finite(*parts: Tensor) -> tuple[int, int]:
    """How many rows of all parts (n, D) are not finite, and how many rows there are; over all ranks."""
    finite = torch.cat([finite_rows(z) for z in parts])
    counts = distributed.sum_(torch.stack([(~finite).sum(), torch.tensor(len(finite), device=finite.device)]))
    return int(counts[0]), int(counts[1])
