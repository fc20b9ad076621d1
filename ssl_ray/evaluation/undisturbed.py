"""Looking at a model in training without leaving a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed(algorithm: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module's mode and torch's random state are as before."""
    modes = {module: module.training for module in algorithm.modules()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        algorithm.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
