"""MAEViT: a Vision Transformer that sees only the patches that masking left."""

import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.backbones.drop_path import growing_rates
from ssl_ray.models.backbones.vit import (
    Block,
    PatchEmbed,
    resize_positions_on_load,
    sincos_positions,
    xavier_init,
)
from ssl_ray.ranges import Channels, Count, Depth, Part, Pixels, Rate, Ratio


class MAEViT(nn.Module):
    """Encoder of MAE. Source: arXiv 2111.06377, section 3; the default is ViT-B/16.

    Of L = (img_size / patch_size)^2 patches, `int(L * (1 - mask_ratio))` are encoded, with a class token in front that
    is never masked. Positions are a fixed sine-cosine table, stored as a buffer because checkpoints disagree about it;
    positions for another image size are interpolated when a state dict is loaded. `feature_dim` is the width D.

    drop_path: rate of the last block, growing linearly from 0 in the first (fine-tuning uses 0.1, pre-training none).
    Raises UserError if patch_size does not divide img_size or if mask_ratio leaves no patch.
    """

    pos_embed: Tensor

    def __init__(
        self,
        img_size: Pixels = 224,
        patch_size: Pixels = 16,
        in_channels: Channels = 3,
        embed_dim: Channels = 768,
        depth: Depth = 12,
        num_heads: Count = 12,
        mlp_ratio: Ratio = 4.0,
        mask_ratio: Part = 0.75,
        drop_path: Rate = 0.0,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(img_size, patch_size, in_channels, embed_dim)
        self.num_patches = self.patch_embed.num_patches
        self.num_kept = int(self.num_patches * (1 - mask_ratio))
        if not 0 < self.num_kept < self.num_patches:
            raise UserError(
                f"mask_ratio: {mask_ratio} keeps {self.num_kept} of {self.num_patches} patches; at least one must "
                "be kept and one removed (the paper removes 0.75)"
            )
        self.feature_dim = embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.register_buffer("pos_embed", sincos_positions(self.patch_embed.grid, embed_dim))
        rates = growing_rates(drop_path, depth)
        self.blocks = nn.Sequential(*(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        nn.init.normal_(self.cls_token, std=0.02)
        self.apply(xavier_init)
        resize_positions_on_load(self, "pos_embed")

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Encodes the kept patches of (B, C, H, W).

        noise: (B, L) in [0, 1), the smallest are kept; drawn here if not given. Returns latent
        (B, 1 + num_kept, D), mask (B, L) with True = removed, and ids_restore (B, L), which puts the sequence "kept
        patches, then removed ones" back into image order.
        """
        patches = self.patch_embed(x) + self.pos_embed[:, 1:]
        if noise is None:
            noise = torch.rand(patches.shape[:2], device=x.device)
        ids_shuffle = noise.argsort(dim=1, stable=True)  # stable: ties fall alike on every device
        ids_restore = ids_shuffle.argsort(dim=1)
        kept = ids_shuffle[:, : self.num_kept, None].expand(-1, -1, patches.shape[2])
        return self._encode(patches.gather(1, kept)), ids_restore >= self.num_kept, ids_restore

    def tokens(self, x: Tensor) -> Tensor:
        """Features of the whole image, nothing masked: (B, C, H, W) -> (B, 1 + L, D), class token first."""
        return self._encode(self.patch_embed(x) + self.pos_embed[:, 1:])

    def embed(self, x: Tensor) -> Tensor:
        """Mean of the patch tokens of the whole image, (B, D): what kNN and probes judge."""
        return self.tokens(x)[:, 1:].mean(dim=1)

    def _encode(self, patches: Tensor) -> Tensor:
        # The class token joins after masking, so it is never dropped.
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        latent: Tensor = self.norm(self.blocks(torch.cat([cls_token, patches], dim=1)))
        return latent
