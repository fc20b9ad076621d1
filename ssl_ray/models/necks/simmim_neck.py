"""SimMIM's decoder: one linear layer from a cell of the last map to its pixels."""

from collections.abc import Sequence

from torch import Tensor, nn

from ssl_ray.ranges import Channels, Pixels


class SimMIMNeck(nn.Module):
    """1x1 convolution and pixel shuffle (arXiv 2111.09886, section 3.3: a linear head does as well as any).

    Args:
        in_channels: channels of the backbone's last map.
        encoder_stride: side in pixels of one cell of that map.
        out_channels: of the images.
    """

    def __init__(self, in_channels: Channels, encoder_stride: Pixels, out_channels: Channels = 3) -> None:
        super().__init__()
        self.encoder_stride = encoder_stride
        self.decoder = nn.Sequential(
            nn.Conv2d(in_channels, encoder_stride**2 * out_channels, kernel_size=1),
            nn.PixelShuffle(encoder_stride),
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Images (B, out_channels, H, W) from the last of `features`, (B, in_channels, H / stride, W / stride)."""
        images: Tensor = self.decoder(features[-1])
        return images
