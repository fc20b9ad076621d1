"""A ResNet that sees edges instead of colours."""

from typing import Literal

from torch import Tensor

from ssl_ray.models.backbones.resnet import Maps, ResNet, ResNetDepth
from ssl_ray.models.backbones.sobel import Sobel
from ssl_ray.ranges import Channels


class ResNetSobel(ResNet):
    """ResNet on the two maps of a Sobel filter, so that clusters are not those of colour (DeepCluster, section 4).

    Args:
        depth, width, stem, zero_init_residual, out_indices, stem_width: as in ResNet.
    """

    def __init__(
        self,
        depth: ResNetDepth = 50,
        width: Channels = 64,
        stem: Literal["imagenet", "small", "small_s2", "small_p2"] = "imagenet",
        zero_init_residual: bool = False,
        out_indices: Maps = (4,),
        stem_width: Channels | None = None,
    ) -> None:
        super().__init__(depth, width, stem, zero_init_residual, 2, out_indices, stem_width)
        self.sobel = Sobel()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of x (B, C, H, W), as in ResNet."""
        return super().forward(self.sobel(x))
