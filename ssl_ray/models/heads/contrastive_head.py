"""InfoNCE head: which of many candidates is the positive."""

import torch
from torch import Tensor, nn

from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.ranges import Positive


class ContrastiveHead(nn.Module):
    """Cross-entropy of [positive, negatives] / temperature with the positive as the class (van den Oord et al. 2018,
    arXiv 1807.03748, eq. 4).

    Args:
        temperature: divides the similarities.
        loss: called with logits (B, 1 + K) and target (B,); CrossEntropyLoss() when None.
    """

    def __init__(self, temperature: Positive = 0.1, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.temperature = temperature
        self.loss = loss or CrossEntropyLoss()

    def forward(self, pos: Tensor, neg: Tensor) -> Tensor:
        """Scalar loss. pos: (B, 1), neg: (B, K) similarities; an entry of -inf in neg is no candidate."""
        logits = torch.cat([pos, neg], dim=1) / self.temperature
        loss: Tensor = self.loss(logits, logits.new_zeros(len(logits), dtype=torch.long))
        return loss

    @torch.no_grad()
    def accuracy(self, pos: Tensor, neg: Tensor) -> Tensor:
        """Share of rows whose positive beats all negatives (0 for a collapsed model, where all are equal)."""
        return (pos.squeeze(1) > neg.amax(1)).float().mean()
