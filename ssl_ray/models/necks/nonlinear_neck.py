"""The projector (and predictor) of most joint-embedding algorithms: an MLP with batch norm."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.ranges import Channels, Depth


class NonLinearNeck(nn.Sequential):
    """[average pool] -> fc0 -> [bn0] -> ReLU -> fc1 -> [bn1] ...: no ReLU after the last layer.

    Args:
        in_channels: channels of the backbone's last map, or length of the vector.
        hid_channels: width of all but the last layer.
        out_channels: length of the projection.
        num_layers: fully connected layers, at least 2.
        with_bias: bias in all fully connected layers but the last.
        with_last_bn: batch norm after the last layer.
        with_last_bn_affine: that batch norm has gain and bias.
        with_last_bias: bias in the last fully connected layer.
        with_avg_pool: input is a map; False for vectors.
        with_bn: batch norm after all layers but the last; MoCo v2's MLP has none.

    Raises UserError for fewer than 2 layers.
    """

    def __init__(
        self,
        in_channels: Channels,
        hid_channels: Channels,
        out_channels: Channels,
        num_layers: Annotated[Depth, Field(ge=2)] = 2,
        with_bias: bool = False,
        with_last_bn: bool = True,
        with_last_bn_affine: bool = True,
        with_last_bias: bool = False,
        with_avg_pool: bool = True,
        with_bn: bool = True,
    ) -> None:
        if num_layers < 2:
            raise UserError(f"num_layers: {num_layers}; use 2 or more, or a LinearNeck")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for i in range(num_layers - 1):
            layers[f"fc{i}"] = nn.Linear(channels, hid_channels, bias=with_bias)
            if with_bn:
                layers[f"bn{i}"] = nn.BatchNorm1d(hid_channels)
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
            channels = hid_channels
        last = num_layers - 1
        layers[f"fc{last}"] = nn.Linear(channels, out_channels, bias=with_last_bias)
        if with_last_bn:
            layers[f"bn{last}"] = nn.BatchNorm1d(out_channels, affine=with_last_bn_affine)
        super().__init__(layers)
        self.out_channels = out_channels
        self.with_avg_pool = with_avg_pool

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Projection (B, out_channels) of the last of `features`: (B, in_channels, H, W), or (B, in_channels)."""
        x = features[-1]
        projection: Tensor = super().forward(x.mean((2, 3)) if self.with_avg_pool else x)  # type: ignore[no-untyped-call]
        return projection
