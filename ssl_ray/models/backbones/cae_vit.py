"""CAEViT: a Vision Transformer that encodes the patches it is told to, and no other."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.models.backbones.drop_path import dropped, growing_rates
from ssl_ray.models.backbones.vit import (
    MLP,
    Attention,
    PatchEmbed,
    resize_positions_on_load,
    sincos_positions,
    xavier_init,
)
from ssl_ray.ranges import Channels, Count, Depth, NotNegative, Pixels, Rate, Ratio

# The official code truncates at one standard deviation.
_STD = 0.02


class CAEViT(nn.Module):
    """Encoder of CAE. Source: arXiv 2202.03026, section 3.1 and appendix; the default is ViT-B/16.

    A ViT with layer scale, whose keys have no bias. A class token stands in front of the patches that are encoded.
    Positions are a fixed sine-cosine table, stored as a buffer; those of another image size are interpolated when a
    state dict is loaded. `feature_dim` is the width D.

    Args:
        img_size, patch_size, in_channels: of the images.
        embed_dim, depth, num_heads, mlp_ratio: of the Transformer.
        layer_scale: start of the factors of the residual branches (arXiv 2103.17239); 0 leaves them out. The official
            code has 0.1 for ViT-B and 1e-5 for ViT-L.
        k_bias: keys have a bias, too, as in MMSelfSup with qkv_bias=True. It cancels in the softmax.
        drop_path: rate of the last block, growing linearly from 0 in the first (official 0.1, MMSelfSup 0).

    Raises UserError if patch_size does not divide img_size, or num_heads embed_dim.
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
        layer_scale: NotNegative = 0.1,
        k_bias: bool = False,
        drop_path: Rate = 0.0,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(img_size, patch_size, in_channels, embed_dim)
        self.feature_dim = embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.register_buffer("pos_embed", sincos_positions(self.patch_embed.grid, embed_dim))
        self.blocks = nn.Sequential(
            *(
                CAEBlock(embed_dim, num_heads, mlp_ratio, layer_scale, k_bias, rate)
                for rate in growing_rates(drop_path, depth)
            )
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.apply(xavier_init)
        init_truncated(self.patch_embed.proj.weight)
        init_truncated(self.cls_token)
        resize_positions_on_load(self, "pos_embed")

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Encodes the patches `chosen` (B, n) int64 of images (B, C, H, W): (B, 1 + n, D), class token first."""
        return self._encode(select(self.patch_embed(x) + self.pos_embed[:, 1:], chosen))

    def tokens(self, x: Tensor) -> Tensor:
        """Features of the whole image: (B, C, H, W) -> (B, 1 + L, D), class token first."""
        return self._encode(self.patch_embed(x) + self.pos_embed[:, 1:])

    def embed(self, x: Tensor) -> Tensor:
        """Mean of the patch tokens of the whole image, (B, D): what kNN and probes judge."""
        return self.tokens(x)[:, 1:].mean(dim=1)

    def positions(self, chosen: Tensor) -> Tensor:
        """Positions (B, n, D) of the patches `chosen` (B, n)."""
        return select(self.pos_embed[:, 1:].expand(chosen.shape[0], -1, -1), chosen)

    def _encode(self, patches: Tensor) -> Tensor:
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        latent: Tensor = self.norm(self.blocks(torch.cat([cls_token, patches], dim=1)))
        return latent


class CAEBlock(nn.Module):
    """Pre-norm Transformer block with layer scale; see CAEViT for layer_scale and k_bias."""

    gamma_1: Tensor | float
    gamma_2: Tensor | float

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.1,
        k_bias: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads) if k_bias else NoKeyBiasAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.gamma_1 = scale_factors(dim, layer_scale)
        self.gamma_2 = scale_factors(dim, layer_scale)
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + dropped(self.gamma_1 * self.attn(self.norm1(x)), self.drop_path, self.training)
        return x + dropped(self.gamma_2 * self.mlp(self.norm2(x)), self.drop_path, self.training)


class NoKeyBiasAttention(Attention):
    """Self-attention with a bias for queries and values only, under BEiT's names."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        projected: Tensor = self.proj(attend(q + self.q_bias, k, v + self.v_bias, self.num_heads))
        return projected


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Multi-head attention of q (B, N, D) to k and v (B, M, D), heads side by side in D: (B, N, D)."""
    q, k, v = (x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def scale_factors(dim: int, start: float) -> nn.Parameter | float:
    """Layer scale: learned factors (dim,) of a residual branch, or 1 where `start` is 0."""
    return nn.Parameter(torch.full((dim,), start)) if start else 1.0


def init_truncated(weight: Tensor) -> None:
    """Normal with deviation 0.02, cut off at one deviation."""
    nn.init.trunc_normal_(weight, std=_STD, a=-_STD, b=_STD)


def select(x: Tensor, chosen: Tensor) -> Tensor:
    """Rows `chosen` (B, n) of each x[i]: (B, L, D) -> (B, n, D)."""
    return x.gather(1, chosen[:, :, None].expand(-1, -1, x.shape[2]))
