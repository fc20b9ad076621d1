"""Cross-entropy over logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossEntropyLoss(nn.Module):
    """Mean over rows of -log softmax(logits)[target], times `loss_weight`; in float32 at least, autocast or not."""

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss. logits: (B, C). target: (B,) int64."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.loss_weight * F.cross_entropy(logits, target)
