"""The momentum encoder: an exponential moving average of the model that learns."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ssl_ray.models.base import Progress


class Teacher(nn.Module):
    """A copy of backbone and neck that follows them: t <- m t + (1 - m) s (He et al. 2019, arXiv 1911.05722, eq. 2).

    Only parameters are averaged. Buffers (BN statistics and counters) are overwritten with the student's at each
    update; between updates the teacher's own forward passes move them. The copy starts equal to the student, takes
    no gradient and runs in the mode of the model it belongs to (train mode during training).
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.neck = copy.deepcopy(neck)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """neck(backbone(x)), without gradient; the backbone's own output where there is no neck."""
        features: Tensor = self.backbone(x)
        if self.neck is None:
            return features
        projection: Tensor = self.neck(features)
        return projection

    @torch.no_grad()
    def update(self, backbone: nn.Module, neck: nn.Module | None, momentum: float) -> None:
        """One step towards the student. momentum: weight of the old average (1 keeps it, 0 copies the student)."""
        for mine, student in ((self.backbone, backbone), (self.neck, neck)):
            if mine is None or student is None:
                continue
            averaged, current = list(mine.parameters()), list(student.parameters())
            get_ema_multi_avg_fn(momentum)(averaged, current, None)  # type: ignore[no-untyped-call]
            for buffer, source in zip(mine.buffers(), student.buffers(), strict=True):
                buffer.copy_(source)


def cosine_momentum(base: float, progress: Progress) -> float:
    """Weight of the old average in the update after step `progress.step`: half a cosine from `base` to 1.

    m_k = 1 - (1 - base) (1 + cos(pi k / K)) / 2, K the optimiser steps of the run. Source: BYOL, arXiv 2006.07733,
    section 3.2. The official MoCo v3 and MMSelfSup give this update, which they make before step k + 1, m_(k + 1).
    """
    return 1 - (1 - base) * (1 + math.cos(math.pi * progress.step / progress.total_steps)) / 2
