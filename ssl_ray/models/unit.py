"""Vectors of unit length."""

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """(B, D, ...) with vectors along D of unit length, in float32 at least, autocast or not."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)
