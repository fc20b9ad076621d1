"""Edges instead of colours."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sobel(nn.Module):
    """Horizontal and vertical Sobel derivatives of the mean of the channels; nothing in it is trained."""

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        columns = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.register_buffer("filters", torch.stack([columns, columns.T])[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2, H, W)."""
        return F.conv2d(x.mean(1, keepdim=True), self.filters.to(x.dtype), padding=1)
