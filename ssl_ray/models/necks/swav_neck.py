"""SwAVNeck: one projection of the crops of all sizes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssl_ray.models.necks.nonlinear_neck import NonLinearNeck
from ssl_ray.models.unit import unit
from ssl_ray.ranges import Channels


class SwAVNeck(nn.Module):
    """Average pool -> linear -> BN -> ReLU -> linear -> unit length (arXiv 2006.09882, appendix A).

    Crops of every size meet in one batch here, so the batch norm sees them all.

    Args:
        in_channels: channels of the backbone's last map.
        hid_channels: width of the hidden layer.
        out_channels: length of an embedding.
        with_avg_pool: False where the backbone's last output is already (B, in_channels).
    """

    def __init__(
        self,
        in_channels: Channels,
        hid_channels: Channels,
        out_channels: Channels,
        with_avg_pool: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.with_avg_pool = with_avg_pool
        self.projection = NonLinearNeck(
            in_channels,
            hid_channels,
            out_channels,
            with_bias=True,
            with_last_bias=True,
            with_last_bn=False,
            with_avg_pool=False,
        )

    def forward(self, features: Sequence[Sequence[Tensor]]) -> Tensor:
        """Unit embeddings (sum of B_i, out_channels), float32 at least.

        features: for each size of crop what the backbone made of those crops, the last (B_i, in_channels, H_i, W_i).
        """
        last = [maps[-1] for maps in features]
        x = torch.cat([m.mean((2, 3)) for m in last] if self.with_avg_pool else last)
        z = self.projection([x])
        return unit(z)
