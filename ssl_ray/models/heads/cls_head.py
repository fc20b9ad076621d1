"""A linear classifier, for pretext tasks with classes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.ranges import Channels, Classes, NotNegative


class ClsPrediction(NamedTuple):
    """label: (...) int64, the likeliest class. probability: (..., num_classes), of every class."""

    label: Tensor
    probability: Tensor


class ClsHead(nn.Module):
    """One linear layer and a classification loss.

    Args:
        in_channels: length of a feature. num_classes: of the pretext task, not of the data set.
        with_avg_pool: the input is the backbone's tuple of maps, of which the last is averaged over its cells.
        loss: called with logits (B, C), target (B,) and optionally class weights (C,); CrossEntropyLoss() when None.
        init_std: deviation of the normal distribution that new weights are drawn from.
    """

    def __init__(
        self,
        in_channels: Channels,
        num_classes: Classes,
        with_avg_pool: bool = False,
        loss: nn.Module | None = None,
        init_std: NotNegative = 0.01,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.with_avg_pool = with_avg_pool
        self.init_std = init_std
        self.fc_cls = nn.Linear(in_channels, num_classes)
        self.reset()
        self.loss = loss or CrossEntropyLoss()

    @torch.no_grad()
    def reset(self) -> None:
        """New weights: normal with deviation `init_std`, biases 0."""
        nn.init.normal_(self.fc_cls.weight, std=self.init_std)
        nn.init.zeros_(self.fc_cls.bias)

    def logits(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """(B, num_classes). x: (B, in_channels), or a tuple of maps with_avg_pool."""
        features = x if isinstance(x, Tensor) else x[-1]
        logits: Tensor = self.fc_cls(features.mean((2, 3)) if self.with_avg_pool else features)
        return logits

    def forward(
        self, x: Tensor | Sequence[Tensor], target: Tensor, class_weight: Tensor | None = None
    ) -> Tensor:
        """Scalar loss. target: (B,) int64; class_weight: (C,)."""
        logits = self.logits(x)
        loss: Tensor = (
            self.loss(logits, target) if class_weight is None else self.loss(logits, target, class_weight)
        )
        return loss

    @torch.no_grad()
    def predict(self, x: Tensor | Sequence[Tensor]) -> ClsPrediction:
        """The likeliest class of each row, and the probability of every class."""
        logits = self.logits(x)
        probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
        return ClsPrediction(probability.argmax(-1), probability)

    @torch.no_grad()
    def accuracy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Share of rows whose largest logit is the target's."""
        return (logits.argmax(1) == target).float().mean()
