"""Average pooling, where the head works on the backbone's own features."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.ranges import Window


class AvgPool2dNeck(nn.Module):
    """The backbone's last map averaged to output_size x output_size cells, as one vector.

    Args:
        output_size: cells on a side.
    """

    def __init__(self, output_size: Window = 1) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, C * output_size^2) of the last of `features`, (B, C, H, W)."""
        return F.adaptive_avg_pool2d(features[-1], self.output_size).flatten(1)
