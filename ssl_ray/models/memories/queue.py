"""A first-in first-out memory of embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.ranges import Channels, Count


class Queue(nn.Module):
    """The last `size` embeddings (He et al. 2019, arXiv 1911.05722, section 3.2); starts as random unit vectors.

    Both buffers are persistent: a restored queue goes on where it stopped. Any number of rows may be written; they
    wrap by modulo, so `size` need not be a multiple of the batch.
    """

    rows: Tensor
    pointer: Tensor

    def __init__(self, size: Count, dim: Channels) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, new: Tensor) -> None:
        """Overwrites the oldest rows with `new` (N, dim), in order. Every rank must pass the same rows."""
        size, count = len(self.rows), len(new)
        places = (self.pointer + torch.arange(count, device=new.device)) % size
        # Of more rows than fit, the first would be overwritten at once; a scatter may not say so, as its order is free.
        self.rows[places[-size:]] = new[-size:].to(self.rows.dtype)
        self.pointer.add_(count).remainder_(size)
