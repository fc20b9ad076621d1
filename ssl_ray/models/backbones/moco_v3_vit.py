"""MoCoV3ViT: a Vision Transformer with fixed positions and, for stability, a fixed patch projection."""

import torch
from torch import Tensor, nn

from ssl_ray.models.backbones.drop_path import growing_rates
from ssl_ray.models.backbones.vit import (
    Attention,
    Block,
    PatchEmbed,
    resize_positions_on_load,
    sincos_positions,
    xavier_init,
)
from ssl_ray.ranges import Channels, Count, Depth, Pixels, Rate, Ratio


class MoCoV3ViT(nn.Module):
    """Vision Transformer of MoCo v3 (arXiv 2104.02057, sections 4 and 5); the default is its ViT-S/16, of 12 heads.

    Positions are a fixed sine-cosine table, stored as a buffer; those of another image size are interpolated when a
    state dict is loaded. `feature_dim` is the width D.

    Args:
        img_size, patch_size, in_channels: of the images.
        embed_dim, depth, num_heads, mlp_ratio: of the Transformer.
        stop_grad_conv1: the patch projection stays as it was initialised (section 4: training becomes stable).
        drop_path: rate of the last block, growing linearly from 0 in the first (pre-training uses none).

    Raises UserError if patch_size does not divide img_size, or num_heads embed_dim.
    """

    pos_embed: Tensor

    def __init__(
        self,
        img_size: Pixels = 224,
        patch_size: Pixels = 16,
        in_channels: Channels = 3,
        embed_dim: Channels = 384,
        depth: Depth = 12,
        num_heads: Count = 12,
        mlp_ratio: Ratio = 4.0,
        stop_grad_conv1: bool = True,
        drop_path: Rate = 0.0,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(img_size, patch_size, in_channels, embed_dim)
        self.feature_dim = embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.register_buffer("pos_embed", sincos_positions(self.patch_embed.grid, embed_dim))
        rates = growing_rates(drop_path, depth)
        self.blocks = nn.Sequential(*(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self._init_weights()
        self.patch_embed.requires_grad_(not stop_grad_conv1)
        resize_positions_on_load(self, "pos_embed")

    @torch.no_grad()
    def _init_weights(self) -> None:
        nn.init.normal_(self.cls_token, std=1e-6)
        self.apply(xavier_init)
        for module in self.modules():
            if isinstance(module, Attention):
                for weight in module.qkv.weight.chunk(3):  # three layers in one tensor
                    nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map of the patches (B, D, H / patch, W / patch) and class token (B, D) of images (B, C, H, W)."""
        patches = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        tokens = self.norm(self.blocks(tokens))
        return tokens[:, 1:].transpose(1, 2).unflatten(2, self.patch_embed.grid), tokens[:, 0]

    def embed(self, x: Tensor) -> Tensor:
        """Class token (B, D): what the loss acts on, and kNN and probes judge (section 5)."""
        return self(x)[1]  # type: ignore[no-any-return]
