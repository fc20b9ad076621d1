"""Negative cosine similarity."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.ranges import Positive


class CosineSimilarityLoss(nn.Module):
    """Mean of shift_factor - scale_factor * cos(pred, target) over the last axis; in float32 at least, autocast or not.

    The defaults are SimSiam's (arXiv 2011.10566, eq. 1). With shift_factor 1, twice the loss is BYOL's squared distance
    of unit vectors (arXiv 2006.07733, eq. 2).
    """

    def __init__(self, shift_factor: float = 0.0, scale_factor: Positive = 1.0) -> None:
        super().__init__()
        self.shift_factor = shift_factor
        self.scale_factor = scale_factor

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scalar loss. pred, target: (..., D). mask (...): the mean is over its ones only."""
        dtype = torch.promote_types(pred.dtype, torch.float32)
        pred, target = (F.normalize(x.to(dtype), dim=-1) for x in (pred, target))
        loss = self.shift_factor - self.scale_factor * (pred * target).sum(dim=-1)
        return loss.mean() if mask is None else (loss * mask).sum() / mask.sum()
