"""What CAE predicts: the number of a visual word for each patch of an image."""

from collections.abc import Callable

from torch import Tensor, nn

Collect = Callable[[Callable[[Tensor], Tensor]], tuple[Tensor, Tensor]]
"""`models.base.Extract` for a function of images (B, 3, H, W) in [0, 1] instead of normalised views."""


class Tokenizer(nn.Module):
    """From images to token numbers 0..num_tokens - 1. Never trained by gradient: subclasses hold buffers only.

    cell_size: side in pixels of what becomes one token; a recipe fits the size of the tokenizer's view to it.
    """

    num_tokens: int
    cell_size: int

    def forward(self, images: Tensor) -> Tensor:
        """Tokens (B, rows, columns) int64 of images (B, 3, H, W), floats in [0, 1]. Takes no gradient."""
        raise NotImplementedError

    def prepare(self, collect: Collect) -> None:
        """Before each epoch, on all ranks together: a tokenizer that learns from the images does so the first time."""
