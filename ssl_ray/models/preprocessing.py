"""From uint8 views to what a backbone expects, on the backbone's device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ssl_ray.ranges import Positive

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DataPreprocessor(nn.Module):
    """Normalises RGB views with mean and std on the [0, 1] scale (defaults: ImageNet's).

    Views are (B, 3, H, W); uint8 becomes float32 and is normalised, float passes through as it is.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[Positive] = IMAGENET_STD) -> None:
        super().__init__()
        # (x / 255 - mean) / std as one product and one difference, in place: a third of the passes over memory.
        mean_, std_ = np.array(mean, np.float64), np.array(std, np.float64)
        for name, value in (("scale", 1 / (255 * std_)), ("shift", mean_ / std_)):
            buffer = torch.tensor(value.tolist(), dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Returns the list of normalised views, memory format kept."""
        return [self.normalize(v) if v.dtype == torch.uint8 else v for v in views]

    def normalize(self, view: Tensor) -> Tensor:
        """One uint8 view, normalised: (x / 255 - mean) / std, float32."""
        return view.to(torch.float32).mul_(self.scale).sub_(self.shift)
