"""Features of the whole training set, for algorithms that need them between epochs."""

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_ray.data.source import Source
from ssl_ray.evaluation.images import PlainImages
from ssl_ray.evaluation.undisturbed import undisturbed
from ssl_ray.models.base import BaseModel, Views


class TrainingSet:
    """What `BaseModel.before_epoch` gets as `extract`; see `models.base.Extract`. Decodes at the first call.

    broken: path -> reason of this rank's images that cannot be decoded; their index is left out of the answer.
    """

    def __init__(
        self,
        source: Source,
        algorithm: BaseModel,
        *,
        size: int,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.broken: dict[str, str] = {}
        self._images = PlainImages(source, size, None, batch_size, self.broken)
        self._algorithm = algorithm
        self._device = torch.device(device)
        self._autocast = autocast

    def __call__(self, function: Callable[[Views], Tensor]) -> tuple[Tensor, Tensor]:
        """Index (n,) and results (n, ...) of this rank's share. The model's modes and torch's random state are kept."""
        indices, results = [], []
        with undisturbed(self._algorithm, self._device):
            for batch, index in self._images.batches():
                views = self._algorithm.data_preprocessor([batch.to(self._device, non_blocking=True)])
                with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
                    results.append(function(views).float())
                indices.append(index)
        return torch.cat(indices).to(self._device), torch.cat(results)
