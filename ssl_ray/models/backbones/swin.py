"""The parts of a Swin Transformer (Liu et al. 2021, arXiv 2103.14030): windows, blocks, patch merging.

Axes: B images, S cells along a side of the map, W windows, N cells of a window, C channels. Maps are (B, S, S, C).
Modules and parameters carry the names of the authors' code, so that their checkpoints load as they are.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.backbones.drop_path import dropped
from ssl_ray.models.backbones.vit import MLP, PatchEmbed

# What is added to the logits of cells that do not belong together, as published: e^-100 is nothing beside 1.
_APART = -100.0


class SwinPatchEmbed(PatchEmbed):
    """As in ViT, with a norm, and the patches as a map."""

    def __init__(
        self, img_size: int = 224, patch_size: int = 4, in_channels: int = 3, embed_dim: int = 96
    ) -> None:
        super().__init__(img_size, patch_size, in_channels, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, S, S, embed_dim). Raises UserError for another image size than it was built for."""
        patches: Tensor = self.norm(super().forward(x))
        return patches.view(x.shape[0], *self.grid, -1)


class WindowAttention(nn.Module):
    """Multi-head self-attention among the cells of each window, with a learned bias per relative position (eq. 4)."""

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise UserError(f"num_heads: {num_heads} does not divide the width {dim} of its stage")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _relative_positions(window), persistent=False)

    def forward(self, x: Tensor, apart: Tensor) -> Tensor:
        """(B, W, N, C) -> the same. apart: (W, N, N), added to the logits of every head."""
        b, w, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, w, n, 3, self.num_heads, -1)
        # A head of a window is a head to the kernel: q, k and v are (B, W * heads, N, d).
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        bias = (bias + apart[:, None]).flatten(0, 1).to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(b, -1, -1, -1))
        projected: Tensor = self.proj(x.view(b, w, self.num_heads, n, -1).transpose(2, 3).flatten(3))
        return projected


class SwinBlock(nn.Module):
    """Attention in windows of `window` x `window` cells and an MLP, pre-norm (figure 3b, eq. 3).

    shift: cells by which the map is rolled first, so that windows straddle those of the block before; cells that only
    rolling brought together do not attend to each other. A map that windows do not fill is padded with zeros, which
    take part as in the authors' code for detection.
    """

    apart: Tensor

    def __init__(
        self,
        dim: int,
        side: int,
        num_heads: int,
        window: int,
        shift: int = 0,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.padding = -side % window
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.drop_path = drop_path
        self.register_buffer("apart", _apart(side + self.padding, window, shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, S, C) -> the same."""
        x = x + dropped(self._attend(self.norm1(x)), self.drop_path, self.training)
        branch: Tensor = dropped(self.mlp(self.norm2(x)), self.drop_path, self.training)
        return x + branch

    def _attend(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, self.padding, 0, self.padding))
        x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = self.attn(partition(x, self.window), self.apart)
        x = departition(windows, self.window).roll((self.shift, self.shift), (1, 2))
        return x[:, : self.side, : self.side]


class PatchMerging(nn.Module):
    """Half the cells along each side, twice the channels: four neighbours side by side, norm, a linear layer.

    Their channels come in the authors' order: cells (0, 0), (1, 0), (0, 1), (1, 1) of (row, column), one after another.
    A row and a column of zeros complete a map of odd side.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, S, C) -> (B, ceil(S / 2), ceil(S / 2), 2C)."""
        b, side, _, c = x.shape
        x = F.pad(x, (0, 0, 0, side % 2, 0, side % 2))
        half = (side + 1) // 2
        cut = x.view(b, half, 2, half, 2, c)
        merged: Tensor = self.reduction(self.norm(cut.permute(0, 1, 3, 4, 2, 5).flatten(3)))
        return merged


def partition(x: Tensor, window: int) -> Tensor:
    """(B, S, S, C) -> (B, W, N, C), windows row by row and the cells in them too. window divides S."""
    b, side, _, c = x.shape
    cut = x.reshape(b, side // window, window, side // window, window, c)
    return cut.transpose(2, 3).reshape(b, -1, window**2, c)


def departition(windows: Tensor, window: int) -> Tensor:
    """(B, W, N, C) -> (B, S, S, C), the inverse of `partition`."""
    b, count, _, c = windows.shape
    rows = math.isqrt(count)
    cut = windows.view(b, rows, rows, window, window, c)
    return cut.transpose(2, 3).reshape(b, rows * window, rows * window, c)


def _relative_positions(window: int) -> Tensor:
    """(N, N): where in the bias table the pair (query cell, key cell) stands."""
    cell = torch.arange(window, device="cpu")  # numbers even where weights have none: see `models.meta`
    row, column = torch.meshgrid(cell, cell, indexing="ij")
    down, right = (c.flatten()[:, None] - c.flatten() + window - 1 for c in (row, column))
    return down * (2 * window - 1) + right


def _apart(side: int, window: int, shift: int) -> Tensor:
    """(W, N, N): 0 where two cells of a window are neighbours on the map that was rolled by `shift`, else _APART."""
    cell = torch.arange(side, device="cpu")
    # Along an axis the last window holds what lay there before rolling, and the `shift` cells that came around.
    part = (cell >= side - window).long() + (cell >= side - shift).long()
    region = partition((3 * part[:, None] + part)[None, :, :, None], window).flatten(0, 1).squeeze(2)
    return (region[:, :, None] != region[:, None]) * _APART
