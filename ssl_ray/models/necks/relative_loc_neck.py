"""What RelativeLoc makes of a pair of patches."""

from collections.abc import Sequence

from torch import Tensor, nn

from ssl_ray.ranges import Channels, Rate, Share


class RelativeLocNeck(nn.Module):
    """Average pool -> fully connected -> batch norm -> ReLU -> dropout, over the channels of both patches.

    The fc6 of Doersch et al. 2015 (arXiv 1505.05192, figure 3) as MMSelfSup has it.

    Args:
        in_channels: channels of the backbone's last map, of one patch.
        out_channels: length of the output.
        with_avg_pool: False where the inputs are vectors.
        dropout: share of the entries set to 0 in training.
        bn_momentum: weight of a batch in the batch norm's running statistics.
    """

    def __init__(
        self,
        in_channels: Channels,
        out_channels: Channels,
        with_avg_pool: bool = True,
        dropout: Rate = 0.5,
        bn_momentum: Share = 0.003,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.with_avg_pool = with_avg_pool
        self.dropout = dropout
        self.fc = nn.Linear(2 * in_channels, out_channels)
        self.bn = nn.BatchNorm1d(out_channels, momentum=bn_momentum)
        self.relu = nn.ReLU(inplace=True)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features: Sequence[Tensor], dropout_scale: Tensor | None = None) -> Tensor:
        """(B, out_channels) of the last of `features`, (B, 2 * in_channels, H, W), or (B, 2 * in_channels).

        dropout_scale: (B, out_channels), what the output is multiplied with in training; none is dropped without it.
        """
        x = features[-1]
        out: Tensor = self.relu(self.bn(self.fc(x.mean((2, 3)) if self.with_avg_pool else x)))
        return out if dropout_scale is None else out * dropout_scale.to(out.dtype)
