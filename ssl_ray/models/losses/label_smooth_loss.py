"""Cross-entropy with label smoothing, for classes that are sure or shared."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.ranges import Rate


class LabelSmoothLoss(nn.Module):
    """Mean over rows of -sum_c q_c log softmax(logits)_c, in float32 at least, autocast or not.

    q is the target's distribution with a part `smoothing` of it spread evenly over all classes. Source: Szegedy et al.
    2015, arXiv 1512.00567, section 7.
    """

    def __init__(self, smoothing: Rate = 0.1) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss. logits: (B, C). target: classes (B,) int64, or a distribution over classes (B, C)."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if target.is_floating_point():
            target = target.to(logits.dtype)
        return F.cross_entropy(logits, target, label_smoothing=self.smoothing)
