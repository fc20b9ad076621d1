"""MAEReconstructionLoss: squared error on the removed patches."""

import torch
from torch import Tensor, nn


class MAEReconstructionLoss(nn.Module):
    """Mean squared error over a patch's pixels, averaged over the removed patches of the batch.

    Source: MAE, arXiv 2111.06377, section 3. Computed in float32 at least, also under autocast.
    """

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Scalar, from pred and target (B, L, P) and mask (B, L), 1 or True = removed."""
        pred = pred.to(torch.promote_types(pred.dtype, torch.float32))
        mask = mask.to(pred.dtype)
        per_patch = (pred - target).square().mean(dim=-1)
        return (per_patch * mask).sum() / mask.sum()
