"""Cross-entropy over logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.ranges import Positive


class CrossEntropyLoss(nn.Module):
    """Mean over rows of -log softmax(logits)[target], times `loss_weight`; in float32 at least, autocast or not."""

    def __init__(self, loss_weight: Positive = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, logits: Tensor, target: Tensor, class_weight: Tensor | None = None) -> Tensor:
        """Scalar loss. logits: (B, C). target: (B,) int64. class_weight: (C,) factors of the rows of each class.

        Weighted rows are summed and divided by B, not by the sum of their weights (as in MMSelfSup, unlike torch).
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if class_weight is None:
            return self.loss_weight * F.cross_entropy(logits, target)
        rows = F.cross_entropy(logits, target, reduction="none")
        return self.loss_weight * (rows * class_weight[target]).mean()
