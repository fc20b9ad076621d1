"""A memory bank: the last embedding of every training image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.ranges import Channels, Count, Rate

# Similarities held at a time: half a GiB of float32.
_AT_ONCE = 2**27


class SimpleMemory(nn.Module):
    """One unit vector per training image (Wu et al. 2018, arXiv 1805.01978, section 3.1); starts at random.

    The buffer is persistent: a restored run goes on with the same bank.

    Args:
        num_samples: images of the training set; row i belongs to `samples["index"] == i`.
        dim: length of an embedding.
        momentum: weight of the old vector in an update (that of the official code; MMSelfSup's weighs the new one).
    """

    rows: Tensor

    def __init__(self, num_samples: Count, dim: Channels, momentum: Rate = 0.5) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("rows", F.normalize(torch.randn(num_samples, dim), dim=1))

    def similarities(self, z: Tensor, index: Tensor) -> Tensor:
        """Products (B, K) of embeddings z (B, dim) with K rows of the bank each, `index` (B, K) int64.

        All products with the bank are made and the wanted ones picked: num_samples numbers per row of z. To fetch the
        vectors first would take K * dim, which is more for any K worth its while, and far slower.
        """
        step = max(_AT_ONCE // len(self.rows), 1)
        parts = zip(torch.split(z, step), torch.split(index, step), strict=True)
        return torch.cat([(part @ self.rows.T).gather(1, wanted) for part, wanted in parts])

    @torch.no_grad()
    def update(self, index: Tensor, new: Tensor) -> None:
        """Moves rows `index` (N,), all different, towards `new` (N, dim), and back to unit length.

        Every rank must pass the same rows.
        """
        mixed = self.momentum * self.rows[index] + (1 - self.momentum) * new.to(self.rows.dtype)
        self.rows[index] = F.normalize(mixed, dim=1)
