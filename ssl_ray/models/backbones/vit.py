"""The parts of a Vision Transformer: patch embedding, block, fixed positions. Source: ViT, arXiv 2010.11929.

Axes: B images, L patches (row by row), N tokens (patches and class token), D channels. Modules and parameters carry
the names of timm and of the official MAE, so that their checkpoints load as they are.
"""

import logging
import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.backbones.drop_path import dropped
from ssl_ray.ranges import MOST_PATCHES

logger = logging.getLogger(__name__)


class PatchEmbed(nn.Module):
    """Cuts an image into square patches and projects each.

    Raises UserError unless patch_size divides img_size, and for more patches than any Transformer compares.
    """

    def __init__(
        self, img_size: int = 224, patch_size: int = 16, in_channels: int = 3, embed_dim: int = 768
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise UserError(
                f"patch_size: {patch_size} does not divide img_size {img_size}; "
                f"choose one of {[p for p in range(2, img_size) if img_size % p == 0]}"
            )
        if (img_size // patch_size) ** 2 > MOST_PATCHES:
            raise UserError(
                f"patch_size: {patch_size} makes {(img_size // patch_size) ** 2} patches of {img_size} x {img_size} "
                f"pixels, more than {MOST_PATCHES}; raise it, or lower the size of the views"
            )
        self.img_size = img_size
        self.grid = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, D). Raises UserError for another image size than it was built for."""
        if x.shape[2:] != (self.img_size, self.img_size):
            height, width = x.shape[2:]
            raise UserError(
                f"img_size: built for {self.img_size} x {self.img_size}, got {height} x {width}; "
                "give the backbone and the views one size"
            )
        patches: Tensor = self.proj(x)
        return patches.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention. Raises UserError unless num_heads divides dim."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise UserError(f"num_heads: {num_heads} does not divide the width {dim}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        x = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(x.transpose(1, 2).flatten(2))
        return projected


class MLP(nn.Module):
    """Two linear layers with a GELU between. Raises UserError if nothing is left in between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        if hidden_dim < 1:
            raise UserError(f"mlp_ratio: too small for a width of {dim}; {1 / dim:.3g} leaves one channel")
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        projected: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return projected


class LayerScale(nn.Module):
    """Learned factors (dim,) of a residual branch, `start` at first. Source: arXiv 2103.17239, section 2."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm Transformer block.

    drop_path: probability to skip a residual branch, per image (arXiv 1603.09382). layer_scale: start of the factors of
    the residual branches; 0 leaves them out.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + dropped(self.ls1(self.attn(self.norm1(x))), self.drop_path, self.training)
        return x + dropped(self.ls2(self.mlp(self.norm2(x))), self.drop_path, self.training)


def xavier_init(module: nn.Module) -> None:
    """For `Module.apply`: Xavier-uniform linear layers (a patch projection counts as one), biases 0."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos_positions(
    grid: tuple[int, int], dim: int, temperature: float = 10000.0, num_prefix: int = 1
) -> Tensor:
    """Fixed 2-d sine-cosine positions, (1, num_prefix + L, dim). Source: MoCo v3, arXiv 2104.02057, and MAE.

    grid: (rows, columns). The first half of the channels encodes the row, the second the column, each as
    [sines, cosines]; prefix tokens (the class token) get zeros. The official MAE has the two halves swapped: keep the
    positions that came with a checkpoint. Raises UserError unless 4 divides dim.
    """
    if dim % 4:
        raise UserError(f"embed_dim: {dim} is not a multiple of 4, which sine-cosine positions need")
    # On the CPU whatever the default device: a table of the same numbers everywhere.
    frequencies = temperature ** -(_range(dim // 4) / (dim // 4))
    row, column = torch.meshgrid(*(_range(n) for n in grid), indexing="ij")
    angles = [position.reshape(-1, 1) * frequencies for position in (row, column)]
    table = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return F.pad(table, (0, 0, num_prefix, 0)).unsqueeze(0).to(torch.get_default_dtype())


def _range(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64, device="cpu")


def resize_positions(positions: Tensor, num_patches: int, num_prefix: int = 1) -> Tensor:
    """Bicubic interpolation of a square grid: (1, num_prefix + L, D) -> (1, num_prefix + num_patches, D)."""
    prefix, patches = positions[:, :num_prefix], positions[:, num_prefix:]
    old, new = math.isqrt(patches.shape[1]), math.isqrt(num_patches)
    image = patches.transpose(1, 2).reshape(1, -1, old, old)
    image = F.interpolate(image, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([prefix, image.flatten(2).transpose(1, 2)], dim=1)


def resize_positions_on_load(module: nn.Module, name: str) -> None:
    """From now on `module.load_state_dict` fits positions `name` of another image or patch size, and says so."""
    module.register_load_state_dict_pre_hook(partial(_fit_positions, name))  # type: ignore[no-untyped-call]


def _fit_positions(name: str, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    own, given = getattr(module, name), state_dict.get(prefix + name)
    if given is not None and given.shape != own.shape and given.shape[2] == own.shape[2]:
        old, new = given.shape[1] - 1, own.shape[1] - 1
        logger.warning("%s: positions for %d patches resized to %d", name, old, new)
        state_dict[prefix + name] = resize_positions(given, new)
