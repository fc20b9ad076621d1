"""SimMIMReconstructionLoss: absolute error on the hidden pixels."""

import torch
from torch import Tensor, nn

from ssl_ray import distributed

_EPS = 1e-5


class SimMIMReconstructionLoss(nn.Module):
    """Mean absolute error over the hidden pixels of the global batch and their channels (arXiv 2111.09886, eq. 1).

    The hidden pixels of all ranks are counted, so that each weighs the same wherever it is and however many there are.
    The published 1e-5 in the denominator makes the loss of a batch without hidden pixels 0. Computed in float32 at
    least, also under autocast.
    """

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Scalar, from pred and target (B, C, H, W) and mask (B, 1, H, W), 1 or True = hidden."""
        pred = pred.to(torch.promote_types(pred.dtype, torch.float32))
        # The mean over ranks is the loss of the global batch: each divides by its share of the common denominator.
        hidden = (distributed.sum_(mask.sum()) + _EPS) / distributed.world_size()
        return ((pred - target).abs() * mask).sum() / hidden / pred.shape[1]
