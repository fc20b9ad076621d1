"""ResNet (He et al. 2015, arXiv 1512.03385), with torchvision's key names and a stem for small images.

The blocks are written out, not taken from torchvision: its import would cost every command and worker seconds.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.ranges import Channels


def _conv_bn(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, of ResNet-18 and 34 (figure 5, left)."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(in_channels, planes, 3, stride)
        self.conv2, self.bn2 = _conv_bn(planes, planes, 3)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The norm at the end of the residual branch."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, planes, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions and a shortcut, of ResNet-50 and deeper (figure 5, right)."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_bn(in_channels, planes, 1)
        self.conv2, self.bn2 = _conv_bn(planes, planes, 3, stride)
        self.conv3, self.bn3 = _conv_bn(planes, planes * self.expansion, 1)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        """The norm at the end of the residual branch."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 4 * planes, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + shortcut)  # type: ignore[no-any-return]


ResNetDepth = Literal[18, 34, 50, 101, 152]
Maps = Annotated[Sequence[Annotated[int, Field(ge=0, le=4)]], Field(min_length=1)]
"""0 the stem, 1 to 4 the stages."""
Block = type[BasicBlock] | type[Bottleneck]
# depth -> (block, blocks per stage)
LAYOUTS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
# stem -> (kernel, stride, padding, max-pool after it)
STEMS = {
    "imagenet": (7, 2, 3, True),
    "small": (3, 1, 1, False),
    "small_s2": (3, 2, 1, False),
    "small_p2": (3, 1, 2, False),
}


class ResNet(nn.Module):
    """ResNet-18/34/50/101/152 without classifier.

    State-dict keys are torchvision's, so torchvision weights load as they are.

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: channels of the first stage's blocks; the stages have width x 1, 2, 4, 8 (x 4 in bottlenecks).
        stem: "imagenet" (7x7 stride 2, max-pool), "small" (3x3 stride 1, for images up to 64 px; the CIFAR
            stem of the SimCLR paper), "small_s2" (3x3 stride 2: a quarter of the cost of "small"),
            "small_p2" (as "small", but padded by 2 cells, so that the map is larger: solo-learn's for CIFAR).
        zero_init_residual: start every residual branch at zero (Goyal et al. 2017, arXiv 1706.02677).
        in_channels: channels of the images.
        out_indices: maps to return, ascending: 0 the stem (before max-pool), 1..4 the stages.
        stem_width: channels of the stem; `width` when None.

    Stages above the last map are not trained. `feature_dim` is the number of channels of that map.
    """

    def __init__(
        self,
        depth: ResNetDepth = 50,
        width: Channels = 64,
        stem: Literal["imagenet", "small", "small_s2", "small_p2"] = "imagenet",
        zero_init_residual: bool = False,
        in_channels: Channels = 3,
        out_indices: Maps = (4,),
        stem_width: Channels | None = None,
    ) -> None:
        super().__init__()
        if depth not in LAYOUTS:
            raise UserError(f"ResNet: depth={depth} does not exist; allowed: {', '.join(map(str, LAYOUTS))}")
        if stem not in STEMS:
            raise UserError(f"ResNet: stem={stem!r} does not exist; allowed: {', '.join(STEMS)}")
        if not out_indices or not set(out_indices) <= set(range(5)):
            raise UserError(
                f"ResNet: out_indices={tuple(out_indices)} must name maps 0 (stem) to 4 (last stage)"
            )
        self.out_indices = tuple(out_indices)
        block, blocks_per_stage = LAYOUTS[depth]
        kernel, stride, padding, pool = STEMS[stem]
        channels = stem_width or width

        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity()
        stages, widths = [], [channels]
        for i, blocks in enumerate(blocks_per_stage):
            planes = width * 2**i
            stages.append(_stage(block, widths[-1], planes, blocks, stride=1 if i == 0 else 2))
            widths.append(planes * block.expansion)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for unused in stages[max(out_indices) :]:
            unused.requires_grad_(False)
        self.feature_dim = widths[out_indices[-1]]
        self._init_weights(zero_init_residual)

    def _init_weights(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_bn.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps named by `out_indices` of x (B, in_channels, H, W): tuple of (B, C_i, H_i, W_i)."""
        x = self.relu(self.bn1(self.conv1(x)))
        maps = [x]
        x = self.maxpool(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4)[: max(self.out_indices)]:
            x = stage(x)
            maps.append(x)
        return tuple(maps[i] for i in self.out_indices)


def _stage(block: Block, in_channels: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """`blocks` residual blocks; the first one changes stride and width, with a 1x1 projection where they differ."""
    channels = planes * block.expansion
    downsample = None
    if stride != 1 or in_channels != channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
        )
    first = block(in_channels, planes, stride, downsample)
    return nn.Sequential(first, *(block(channels, planes, 1, None) for _ in range(blocks - 1)))
