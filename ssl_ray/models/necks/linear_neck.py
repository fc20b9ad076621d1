"""A single linear projection."""

from collections.abc import Sequence

from torch import Tensor, nn

from ssl_ray.ranges import Channels


class LinearNeck(nn.Module):
    """Global average pool, then one fully connected layer with bias (MoCo v1, NPID).

    Args:
        in_channels: channels of the backbone's last map.
        out_channels: length of the projection.
        with_avg_pool: False where the backbone's last output is already (B, in_channels).
    """

    def __init__(self, in_channels: Channels, out_channels: Channels, with_avg_pool: bool = True) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.with_avg_pool = with_avg_pool
        self.fc = nn.Linear(in_channels, out_channels)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Projection (B, out_channels) of the last of `features`, (B, in_channels, H, W)."""
        x = features[-1]
        projection: Tensor = self.fc(x.mean((2, 3)) if self.with_avg_pool else x)
        return projection
