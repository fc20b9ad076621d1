"""The projector of DenseCL: one for the image, one for every cell of its map."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ssl_ray.ranges import Channels, Window


class DenseProjection(NamedTuple):
    """What DenseCLNeck makes of a map.

    image: (B, D), of the pooled map. cells: (B, D, S), of each cell, row by row. pooled: (B, D), the mean of `cells`.
    features: (B, C, S), the map itself on the grid of `cells`.
    """

    image: Tensor
    cells: Tensor
    pooled: Tensor
    features: Tensor


class DenseCLNeck(nn.Module):
    """Two MLPs of two layers with biases and without batch norm: one for the average of the map, one as 1x1
    convolutions for its cells (Wang et al. 2021, arXiv 2011.09157, section 3.2).

    Args:
        in_channels: channels of the backbone's last map.
        hid_channels: width of the hidden layers.
        out_channels: length D of both kinds of projection.
        num_grid: average the map to num_grid x num_grid cells first; None leaves it as it is.
    """

    def __init__(
        self,
        in_channels: Channels,
        hid_channels: Channels,
        out_channels: Channels,
        num_grid: Window | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hid_channels),
            nn.ReLU(inplace=True),
            nn.Linear(hid_channels, out_channels),
        )
        self.mlp2 = nn.Sequential(
            nn.Conv2d(in_channels, hid_channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hid_channels, out_channels, 1),
        )
        self.pool = nn.Identity() if num_grid is None else nn.AdaptiveAvgPool2d(num_grid)

    def forward(self, features: Sequence[Tensor]) -> DenseProjection:
        """Projections of the last of `features`, (B, in_channels, H, W)."""
        grid = self.pool(features[-1])
        cells = self.mlp2(grid).flatten(2)
        return DenseProjection(
            self.mlp(features[-1].mean((2, 3))), cells, pooled=cells.mean(2), features=grid.flatten(2)
        )
