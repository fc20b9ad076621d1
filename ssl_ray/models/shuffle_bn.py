"""Shuffled batch norm: keys are made with the statistics of other rows than their queries.

Batch statistics else tell which key belongs to which query (He et al. 2019, arXiv 1911.05722, section 3.3).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.errors import UserError

Encoder = Callable[[Tensor], Sequence[Tensor]]
"""From images (B, 3, H, W) to one or more tensors of B rows."""


@torch.no_grad()
def encode(encoder: Encoder, images: Tensor, groups: int = 1) -> tuple[Tensor, ...]:
    """`encoder(images)`, in that many groups of rows, each with batch statistics of its own.

    Raises UserError where the groups would not be of one size.
    """
    if len(images) % groups:
        raise UserError(
            f"split_bn: {groups} groups cannot share {len(images)} images evenly; set a divisor of that"
        )
    parts = [encoder(group) for group in images.chunk(groups)]
    return tuple(torch.cat(rows) for rows in zip(*parts, strict=True))


@torch.no_grad()
def encode_shuffled(
    encoder: Encoder, images: Tensor, groups: int = 1, permutation: Tensor | None = None
) -> tuple[Tensor, ...]:
    """As `encode`, but the rows of all workers are dealt to workers and groups in the order of `permutation`.

    permutation: of the global batch; drawn here when None. Results are of this rank's `images`, in their order. With
    one worker and one group batch norm sees the same rows either way: nothing is drawn, and a given permutation
    changes rounding only.
    """
    if permutation is None:
        if distributed.world_size() == 1 and groups == 1:
            return encode(encoder, images)
        # Ranks draw different numbers; rank 0's permutation counts.
        count = len(images) * distributed.world_size()
        permutation = distributed.broadcast(torch.randperm(count, device=images.device))
    dealt = distributed.gather(images)[distributed.local_rows(permutation)]
    back = permutation.argsort()
    return tuple(
        distributed.local_rows(distributed.gather(rows)[back]) for rows in encode(encoder, dealt, groups)
    )
