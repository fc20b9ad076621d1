"""VisionTransformer: the plain one, for weights that none of the algorithms here has trained."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.backbones.drop_path import growing_rates
from ssl_ray.models.backbones.vit import Block, PatchEmbed, resize_positions_on_load
from ssl_ray.ranges import MOST_PATCHES, Channels, Count, Depth, NotNegative, Pixels, Rate, Ratio

Registers = Annotated[int, Field(ge=0, le=MOST_PATCHES)]


class VisionTransformer(nn.Module):
    """Vision Transformer (arXiv 2010.11929) as timm, DeiT, DINO and DINOv2 have it; the default is ViT-S/16.

    Positions are learned; those of another image size are interpolated when a state dict is loaded. `feature_dim` is
    the width D.

    Args:
        img_size, patch_size, in_channels: of the images.
        embed_dim, depth, num_heads, mlp_ratio: of the Transformer.
        layer_scale: start of the factors of the residual branches (arXiv 2103.17239); 0 leaves them out.
        num_registers: learned tokens beside the class token that nothing reads (arXiv 2309.16588).
        pool: an image's features are the class token, or the mean of the patch tokens.
        drop_path: rate of the last block, growing linearly from 0 in the first.

    Raises UserError if patch_size does not divide img_size, or num_heads embed_dim, or for another pool.
    """

    def __init__(
        self,
        img_size: Pixels = 224,
        patch_size: Pixels = 16,
        in_channels: Channels = 3,
        embed_dim: Channels = 384,
        depth: Depth = 12,
        num_heads: Count = 6,
        mlp_ratio: Ratio = 4.0,
        layer_scale: NotNegative = 0.0,
        num_registers: Registers = 0,
        pool: Literal["token", "mean"] = "token",
        drop_path: Rate = 0.0,
    ) -> None:
        super().__init__()
        if pool not in ("token", "mean"):
            raise UserError(f"pool: {pool!r} is neither 'token' nor 'mean'")
        self.pool = pool
        self.patch_embed = PatchEmbed(img_size, patch_size, in_channels, embed_dim)
        self.feature_dim = embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.reg_token = nn.Parameter(torch.empty(1, num_registers, embed_dim)) if num_registers else None
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.patch_embed.num_patches, embed_dim))
        rates = growing_rates(drop_path, depth)
        self.blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, mlp_ratio, rate, layer_scale) for rate in rates)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self._init_weights()
        resize_positions_on_load(self, "pos_embed")

    def _init_weights(self) -> None:
        """As in timm: truncated normal weights, biases 0; the patch projection as torch has it."""
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map of the patches (B, D, H / patch, W / patch) and class token (B, D) of images (B, C, H, W)."""
        tokens = self.tokens(x)
        patches = tokens[:, 1:].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *self.patch_embed.grid), tokens[:, 0]

    def tokens(self, x: Tensor) -> Tensor:
        """Features of the whole image: (B, C, H, W) -> (B, 1 + L, D), class token first."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        if self.reg_token is None:
            return self.norm(self.blocks(x))  # type: ignore[no-any-return]
        registers = self.reg_token.expand(x.shape[0], -1, -1)
        x = self.norm(self.blocks(torch.cat([x, registers], dim=1)))
        return x[:, : -registers.shape[1]]

    def embed(self, x: Tensor) -> Tensor:
        """The class token, or the mean of the patch tokens, (B, D): what kNN and probes judge."""
        tokens = self.tokens(x)
        return tokens[:, 0] if self.pool == "token" else tokens[:, 1:].mean(dim=1)
