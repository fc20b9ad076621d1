"""Edges instead of colours."""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class Sobel(nn.Module):
    """Horizontal and vertical Sobel derivatives of the mean of the channels; nothing in it is trained.

    Its numbers are buffers, for checkpoints of MMSelfSup hold others: there the initialisation overwrites them with
    noise before training. A state dict that has none of them (ours had none once) means Sobel's.

    gray (1, 3, 1, 1) and gray_bias (1,): weights of the channels, and what is added to their sum. filters (2, 1, 3, 3)
    and filters_bias (2,): of the two maps that are made of that.
    """

    gray: Tensor
    gray_bias: Tensor
    filters: Tensor
    filters_bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in _numbers().items():
            self.register_buffer(name, value)
        self.register_load_state_dict_pre_hook(_complete)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2, H, W)."""
        gray, gray_bias, filters, bias = (
            value.to(x.dtype) for value in (self.gray, self.gray_bias, self.filters, self.filters_bias)
        )
        return F.conv2d(F.conv2d(x, gray, gray_bias), filters, bias, padding=1)


def _numbers() -> dict[str, Tensor]:
    columns = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))
    rows = tuple(zip(*columns, strict=True))
    return {
        "gray": torch.full((1, 3, 1, 1), 1 / 3),
        "gray_bias": torch.zeros(1),
        "filters": torch.tensor([[columns], [rows]]),
        "filters_bias": torch.zeros(2),
    }


def _complete(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    numbers = {prefix + name: value for name, value in _numbers().items()}
    given = {name: state_dict[name] for name in numbers if name in state_dict}
    if not given:
        state_dict |= numbers
    elif not all(
        torch.allclose(v.to(numbers[k]), numbers[k], rtol=1e-5, atol=1e-6) for k, v in given.items()
    ):
        logger.warning("sobel: the filters are other numbers than Sobel's; they are used as they are")
