"""CAENeck: from the visible patches' latents to the hidden ones', and from those to tokens."""

import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.backbones.cae_vit import (
    CAEBlock,
    attend,
    init_truncated,
    scale_factors,
)
from ssl_ray.models.backbones.drop_path import dropped, growing_rates
from ssl_ray.models.backbones.vit import MLP, xavier_init
from ssl_ray.ranges import Channels, Classes, Count, Depth, NotNegative, Rate, Ratio


class CAENeck(nn.Module):
    """Latent contextual regressor and decoder of CAE. Source: arXiv 2202.03026, sections 3.1 and 3.2.

    The regressor starts from one learned token for every hidden patch, which attends to the visible latents and to the
    hidden ones so far; what it arrives at should be the latents that the encoder gives for the hidden patches. The
    decoder sees nothing else.

    Args:
        embed_dim: the encoder's width. num_tokens: size of the tokenizer's vocabulary.
        regressor_depth, decoder_depth, num_heads, mlp_ratio: of the Transformers (MMSelfSup's defaults are 6 and 8
            blocks, its configs and the official ones have 4 and 4).
        layer_scale, drop_path: see CAEViT.
        k_bias: keys of the decoder have a bias, as in MMSelfSup with qkv_bias=True.
        regressor_bias: queries and values of the regressor have a bias; not in MMSelfSup with qkv_bias=False.

    Raises UserError unless num_heads divides embed_dim.
    """

    def __init__(
        self,
        embed_dim: Channels = 768,
        num_tokens: Classes = 8192,
        regressor_depth: Depth = 4,
        decoder_depth: Depth = 4,
        num_heads: Count = 12,
        mlp_ratio: Ratio = 4.0,
        layer_scale: NotNegative = 0.1,
        k_bias: bool = False,
        regressor_bias: bool = True,
        drop_path: Rate = 0.0,
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.regressor_blocks = nn.ModuleList(
            RegressorBlock(embed_dim, num_heads, mlp_ratio, layer_scale, regressor_bias, rate)
            for rate in growing_rates(drop_path, regressor_depth)
        )
        self.regressor_norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.decoder_blocks = nn.Sequential(
            *(
                CAEBlock(embed_dim, num_heads, mlp_ratio, layer_scale, k_bias, rate)
                for rate in growing_rates(drop_path, decoder_depth)
            )
        )
        self.decoder_norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(embed_dim, num_tokens)
        self.apply(xavier_init)
        init_truncated(self.mask_token)

    def forward(
        self, visible: Tensor, positions_visible: Tensor, positions_hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, M, num_tokens) and latents (B, M, D) of the hidden patches.

        visible: latents (B, n, D) without class token. positions_visible: (B, n, D). positions_hidden: (B, M, D).
        """
        hidden = self.mask_token.to(visible.dtype).expand(*positions_hidden.shape[:2], -1)
        positions = torch.cat([positions_visible, positions_hidden], dim=1)
        for block in self.regressor_blocks:
            hidden = block(hidden, torch.cat([visible, hidden], dim=1), positions_hidden, positions)
        latent = self.regressor_norm(hidden)
        decoded = self.decoder_norm(self.decoder_blocks(latent + positions_hidden))
        return self.decoder_pred(decoded), latent


class RegressorBlock(nn.Module):
    """Cross-attention block: queries, keys and values are normalised apart, positions added to the first two.

    As in the official code the second residual branch starts from the normalised sum, which replaces the sum.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.1,
        bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1_q = nn.LayerNorm(dim, eps=1e-6)
        self.norm1_k = nn.LayerNorm(dim, eps=1e-6)
        self.norm1_v = nn.LayerNorm(dim, eps=1e-6)
        self.cross_attn = CrossAttention(dim, num_heads, bias)
        self.norm2_cross = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.gamma_1_cross = scale_factors(dim, layer_scale)
        self.gamma_2_cross = scale_factors(dim, layer_scale)
        self.drop_path = drop_path

    def forward(self, x: Tensor, context: Tensor, positions: Tensor, positions_context: Tensor) -> Tensor:
        """(B, M, D), from x and positions (B, M, D), context and positions_context (B, N, D) of all patches."""
        attended = self.cross_attn(
            self.norm1_q(x + positions), self.norm1_k(context + positions_context), self.norm1_v(context)
        )
        x = self.norm2_cross(x + dropped(self.gamma_1_cross * attended, self.drop_path, self.training))
        return x + dropped(self.gamma_2_cross * self.mlp(x), self.drop_path, self.training)


class CrossAttention(nn.Module):
    """Multi-head attention of x to other tokens; no bias for keys, and none but the last without `bias`."""

    def __init__(self, dim: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        if dim % num_heads:
            raise UserError(f"num_heads: {num_heads} does not divide the width {dim}")
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, M, D), from x (B, M, D), keys and values (B, N, D)."""
        q, k, v = self.q(x), self.k(keys), self.v(values)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias, v + self.v_bias
        projected: Tensor = self.proj(attend(q, k, v, self.num_heads))
        return projected
