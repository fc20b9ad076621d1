"""BYOL: the teacher's momentum is annealed, by MMSelfSup's count of updates."""

import math
from typing import Any

import torch
from torch import Tensor

from ssl_ray.interop import mmselfsup
from ssl_ray.models import BaseModel, Progress
from ssl_ray.models.teacher import cosine_momentum
from tests.conformance.orders.order import Order, Samples


class BYOLOrder(Order):
    """MMSelfSup's loss call k, counted from 0, makes update k with momentum m_k; update 0 is a copy.

    Our update after step k has m_k, too, but does what their update k + 1 does. So that it has the momentum of theirs,
    our steps are here one ahead of their calls.
    """

    def model(self, record: dict[str, Any], override: dict[str, Tensor], extra: dict[str, Any]) -> BaseModel:
        model = super().model(record, override, extra)
        counter = mmselfsup.ALGORITHMS[type(model).__name__].counter
        self.updates = int((record["state_dict"] | override)[counter])
        return model

    def samples(self, draws: list[dict[str, Any]], extra: dict[str, Any]) -> Samples:
        assert not draws
        assert set(extra) == {"max_iters"}
        return {}

    def progress(self, step: int, extra: dict[str, Any], record: dict[str, Any]) -> Progress:
        return self._at(self.updates + step + 1, extra["max_iters"])

    def momentum(self, model: BaseModel, progress: Progress) -> float:
        return cosine_momentum(model.momentum, self._at(round(progress.step) - 1, progress.total_steps))

    def _at(self, update: int, total: int) -> Progress:
        # Their count is an int64 tensor, which makes their angle a float32. A step with a fraction gives us the same.
        angle = math.pi * torch.tensor(update) / float(total)
        return Progress(angle.item() * total / math.pi, total, 0, 1)  # type: ignore[arg-type]
