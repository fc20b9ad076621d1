"""MAEPretrainDecoder: from the encoded visible patches to pixels of all patches."""

import math

import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.backbones.vit import Block, resize_positions_on_load, sincos_positions, xavier_init
from ssl_ray.ranges import Channels, Count, Depth, Patches, Pixels, Ratio


class MAEPretrainDecoder(nn.Module):
    """Light Transformer decoder of MAE. Source: arXiv 2111.06377, section 3.

    num_patches, patch_size, in_channels and embed_dim are the encoder's. One learned token stands for every
    removed patch. Raises UserError if num_patches is not a square.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self,
        num_patches: Patches = 196,
        patch_size: Pixels = 16,
        in_channels: Channels = 3,
        embed_dim: Channels = 768,
        decoder_embed_dim: Channels = 512,
        decoder_depth: Depth = 8,
        decoder_num_heads: Count = 16,
        mlp_ratio: Ratio = 4.0,
    ) -> None:
        super().__init__()
        side = math.isqrt(num_patches)
        if side * side != num_patches:
            raise UserError(f"num_patches: {num_patches} is not a square; give (img_size / patch_size)^2")
        if decoder_embed_dim % decoder_num_heads:
            raise UserError(
                f"decoder_num_heads: {decoder_num_heads} does not divide decoder_embed_dim {decoder_embed_dim}"
            )
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_embed_dim))
        self.register_buffer("decoder_pos_embed", sincos_positions((side, side), decoder_embed_dim))
        self.decoder_blocks = nn.Sequential(
            *(Block(decoder_embed_dim, decoder_num_heads, mlp_ratio) for _ in range(decoder_depth))
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_channels)
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(xavier_init)
        resize_positions_on_load(self, "decoder_pos_embed")

    def forward(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """From latent (B, 1 + kept, D) and ids_restore (B, L) to pixels (B, L, patch_size^2 * C).

        Raises UserError if the encoder has another number of patches.
        """
        num_patches = self.decoder_pos_embed.shape[1] - 1
        if ids_restore.shape[1] != num_patches:
            raise UserError(
                f"num_patches: the decoder is built for {num_patches}, the encoder has {ids_restore.shape[1]}; "
                f"set neck.num_patches={ids_restore.shape[1]}"
            )
        x = self.decoder_embed(latent)
        cls_token, visible = x[:, :1], x[:, 1:]
        removed = self.mask_token.to(x.dtype).expand(len(x), num_patches - visible.shape[1], -1)
        patches = torch.cat([visible, removed], dim=1)
        patches = patches.gather(1, ids_restore[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([cls_token, patches], dim=1) + self.decoder_pos_embed
        pred: Tensor = self.decoder_pred(self.decoder_norm(self.decoder_blocks(x))[:, 1:])
        return pred
