"""What ODC clusters: a short vector that is never negative."""

from collections.abc import Sequence

from torch import Tensor, nn

from ssl_ray.ranges import Channels, Rate, Share


class ODCNeck(nn.Module):
    """[average pool] -> fc0 -> bn0 -> ReLU -> dropout -> fc1 -> ReLU (Zhan et al. 2020, arXiv 2006.10645, section 4).

    The batch norm has no gain and bias.

    Args:
        in_channels: channels of the backbone's last map, or length of the vector.
        hid_channels: width of the hidden layer.
        out_channels: length of the output.
        with_avg_pool: input is a map; False for vectors.
        dropout: share of the hidden layer's entries set to 0 in training.
        bn_momentum: weight of a batch in the batch norm's running statistics.
    """

    def __init__(
        self,
        in_channels: Channels,
        hid_channels: Channels,
        out_channels: Channels,
        with_avg_pool: bool = True,
        dropout: Rate = 0.5,
        bn_momentum: Share = 0.001,
    ) -> None:
        super().__init__()
        self.hid_channels = hid_channels
        self.out_channels = out_channels
        self.with_avg_pool = with_avg_pool
        self.dropout = dropout
        self.fc0 = nn.Linear(in_channels, hid_channels)
        self.bn0 = nn.BatchNorm1d(hid_channels, momentum=bn_momentum, affine=False)
        self.fc1 = nn.Linear(hid_channels, out_channels)
        self.relu = nn.ReLU(inplace=True)
        for layer in (self.fc0, self.fc1):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor], dropout_scale: Tensor | None = None) -> Tensor:
        """(B, out_channels) of the last of `features`, (B, in_channels, H, W), or (B, in_channels).

        dropout_scale: (B, hid_channels), what the hidden layer is multiplied with in training; none is dropped
        without it.
        """
        x = features[-1]
        x = self.relu(self.bn0(self.fc0(x.mean((2, 3)) if self.with_avg_pool else x)))
        if dropout_scale is not None:
            x = x * dropout_scale.to(x.dtype)
        out: Tensor = self.relu(self.fc1(x))
        return out
