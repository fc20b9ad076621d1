"""The last embeddings of the crops whose codes SwAV predicts."""

import torch
from torch import Tensor, nn

from ssl_ray.ranges import Channels, Count


class SwAVQueue(nn.Module):
    """The last `size` images' embeddings of `num_crops` crops, newest batch first (arXiv 2006.09882, section 3.1).

    Starts with zeros, which stand for nothing: `full` says when the last of them is gone. The buffer is persistent: a
    restored queue goes on where it stopped.
    """

    rows: Tensor

    def __init__(self, size: Count, num_crops: Count, dim: Channels) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, num_crops, dim))

    @property
    def full(self) -> Tensor:
        """Bool scalar on the queue's device: every row has been written."""
        return self.rows[-1].any()

    @torch.no_grad()
    def enqueue(self, new: Tensor) -> None:
        """Puts `new` (N, num_crops, dim) in front, dropping the last N rows. Every rank must pass the same rows."""
        self.rows.copy_(torch.cat([new.to(self.rows.dtype), self.rows])[: len(self.rows)])
