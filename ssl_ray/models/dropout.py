"""Dropout that does not depend on how a global batch is dealt to workers."""

import torch
from torch import Tensor

from ssl_ray import distributed


@torch.no_grad()
def dropout_scale(rows: int, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
    """Factors of this rank's rows, (rows, *shape): 0 with probability p, else 1 / (1 - p).

    Rank 0 draws for the global batch: the factors of a row are the same on any number of workers.
    """
    keep = torch.rand((rows * distributed.world_size(), *shape), device=device) >= p
    # As bytes: a quarter of the traffic, and every backend can send them.
    mine = distributed.local_rows(distributed.broadcast(keep.to(torch.uint8)))
    return mine.to(torch.get_default_dtype()) / (1 - p)
