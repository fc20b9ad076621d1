"""SimMIMSwinTransformer: a Swin Transformer some of whose patches are a learned token."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.backbones.drop_path import growing_rates
from ssl_ray.models.backbones.swin import PatchMerging, SwinBlock, SwinPatchEmbed
from ssl_ray.ranges import Channels, Count, Depth, Pixels, Rate, Ratio, Window


class SwinStage(nn.Module):
    """Blocks, windows shifted in every second one, and what makes the next stage's map of theirs."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, S, C) -> (B, S / 2, S / 2, 2C), or the same size from the last stage."""
        merged: Tensor = self.downsample(self.blocks(x))
        return merged


class SimMIMSwinTransformer(nn.Module):
    """Encoder of SimMIM (arXiv 2111.09886, section 3.1). The default is Swin-B (arXiv 2103.14030) for 192 px.

    Hidden patches are replaced by a token after the embedding, and the whole map is encoded. Positions are relative.

    Args:
        img_size, patch_size: of the images, pixels; in_channels: of the images.
        embed_dim: width of the first stage; every further one has twice the width and half the map.
        depths, num_heads: blocks, and attention heads, of each stage.
        window_size: side of an attention window, in cells of the map. A map that is not larger is one window.
        mlp_ratio: hidden width of the MLPs, as a multiple of the stage's.
        drop_path: rate of the last block, growing linearly from 0 in the first (the authors pre-train without;
            MMSelfSup's default is 0.1).
        pad_small_maps: a map that is not larger than the window is padded to it with zeros instead, and shifted, as
            in MMSelfSup's Swin-L.

    `feature_dim` is the width of the last stage, `stride` the side in pixels of a cell of its map.
    Raises UserError if patch_size does not divide img_size, or if depths, num_heads and embed_dim do not fit.
    """

    def __init__(
        self,
        img_size: Pixels = 192,
        patch_size: Pixels = 4,
        in_channels: Channels = 3,
        embed_dim: Channels = 128,
        depths: Sequence[Depth] = (2, 2, 18, 2),
        num_heads: Sequence[Count] = (4, 8, 16, 32),
        window_size: Window = 6,
        mlp_ratio: Ratio = 4.0,
        drop_path: Rate = 0.0,
        pad_small_maps: bool = False,
    ) -> None:
        super().__init__()
        if not depths or len(depths) != len(num_heads):
            raise UserError(
                f"depths: {len(depths)} stages, num_heads: {len(num_heads)}; give one of each per stage"
            )
        self.patch_embed = SwinPatchEmbed(img_size, patch_size, in_channels, embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        total = sum(depths)
        rates = iter(growing_rates(drop_path, total))
        stages, side, dim = [], img_size // patch_size, embed_dim
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            fits = side > window_size or pad_small_maps
            window, shift = (window_size, window_size // 2) if fits else (side, 0)
            blocks = [
                SwinBlock(dim, side, heads, window, shift if j % 2 else 0, mlp_ratio, next(rates))
                for j in range(depth)
            ]
            last = i == len(depths) - 1
            stages.append(SwinStage(blocks, nn.Identity() if last else PatchMerging(dim)))
            if not last:
                side, dim = (side + 1) // 2, 2 * dim
        self.layers = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(dim)
        self.feature_dim = dim
        self.stride = patch_size * 2 ** (len(depths) - 1)
        self.apply(_init)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor]:
        """The last stage's map of (B, C, H, W), normalised: (B, feature_dim, H / stride, W / stride).

        mask: (B, H / patch_size, W / patch_size), 1 or True = hidden; nothing is hidden without it. Raises UserError
        for a mask of another grid, or images of another size.
        """
        x = self.patch_embed(x)
        if mask is not None:
            if mask.shape != x.shape[:3]:
                raise UserError(
                    f"mask: {tuple(mask.shape)} for patches {tuple(x.shape[:3])} (images, rows, columns); give the "
                    "backbone and the views one patch_size"
                )
            hidden = mask.unsqueeze(3).to(x.dtype)
            x = x * (1 - hidden) + self.mask_token.to(x.dtype) * hidden
        return (self.norm(self.layers(x)).permute(0, 3, 1, 2),)


def _init(module: nn.Module) -> None:
    """Linear layers from a truncated normal distribution, biases 0, as in the authors' code."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
