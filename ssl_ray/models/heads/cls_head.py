"""A linear classifier, for pretext tasks with classes."""

import torch
from torch import Tensor, nn

from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss


class ClsHead(nn.Module):
    """One linear layer and a classification loss.

    Args:
        in_channels: length of a feature. num_classes: of the pretext task, not of the data set.
        with_avg_pool: the input is the backbone's tuple of maps, of which the last is averaged over its cells.
        loss: called with logits (B, C), target (B,) and optionally class weights (C,); CrossEntropyLoss() when None.
    """

    def __init__(
        self, in_channels: int, num_classes: int, with_avg_pool: bool = False, loss: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.with_avg_pool = with_avg_pool
        self.fc_cls = nn.Linear(in_channels, num_classes)
        self.reset()
        self.loss = loss or CrossEntropyLoss()

    @torch.no_grad()
    def reset(self) -> None:
        """New weights: normal with deviation 0.01, biases 0."""
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.zeros_(self.fc_cls.bias)

    def logits(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """(B, num_classes). x: (B, in_channels), or a tuple of maps with_avg_pool."""
        features = x[-1] if isinstance(x, tuple | list) else x
        logits: Tensor = self.fc_cls(features.mean((2, 3)) if self.with_avg_pool else features)
        return logits

    def forward(
        self, x: Tensor | tuple[Tensor, ...], target: Tensor, class_weight: Tensor | None = None
    ) -> Tensor:
        """Scalar loss. target: (B,) int64; class_weight: (C,)."""
        logits = self.logits(x)
        loss: Tensor = (
            self.loss(logits, target) if class_weight is None else self.loss(logits, target, class_weight)
        )
        return loss

    @torch.no_grad()
    def accuracy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Share of rows whose largest logit is the target's."""
        return (logits.argmax(1) == target).float().mean()
