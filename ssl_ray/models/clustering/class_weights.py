"""Weights against clusters of unequal size."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

Power = Annotated[float, Field(ge=0, le=3)]
"""Of a size: above, `sum_to_one` leaves float32 where a class is empty."""


@torch.no_grad()
def class_weights(sizes: Tensor, power: float, sum_to_one: bool = False) -> Tensor:
    """Weights (k,) float32 of classes with these numbers of samples (k,), proportional to size^-power.

    They average 1 over the samples, so that the loss keeps its scale and power 0 weighs nothing; power 1 gives every
    class the same part in the loss, as drawing uniformly among classes does. An empty class gets 0.

    sum_to_one: as MMSelfSup makes them, which shrinks the loss by the number of classes; there an empty class, being
    of size 1e-10, takes nearly all. Theirs to the last bit, hence by NumPy in float32.
    """
    if sum_to_one:
        inverse = (1 / (sizes.cpu().numpy().astype(np.float32) + 1e-10)) ** power
        return torch.from_numpy(inverse / inverse.sum()).to(sizes.device)
    counts = sizes.double()
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -power, 0)
    return (weights * counts.sum() / (weights * counts).sum()).float()
