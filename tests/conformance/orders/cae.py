"""CAE: the teacher moves at the end of the loss call, after its use; recordings hold the tokens of their images."""

from typing import Any

import torch
from torch import Tensor

from ssl_ray.models import CAE, BaseModel, Output, Progress
from tests.conformance.orders.order import Order, Samples


class CAEOrder(Order):
    def model(self, record: dict[str, Any], override: dict[str, Tensor], extra: dict[str, Any]) -> BaseModel:
        config = {k: v for k, v in record["config"]["model"].items() if k != "target_generator"}
        return super().model({**record, "config": {"model": config}}, override, extra)

    def momentum(self, model: BaseModel, progress: Progress) -> float:
        return 1.0  # nothing is due before the first loss

    def loss(self, model: BaseModel, views: list[Tensor], samples: Samples, progress: Progress) -> Output:
        output: Output = model(views, samples, mode="loss")
        model.before_step(progress)
        return output

    def features(self, model: CAE, views: list[Tensor], samples: Samples) -> dict[str, Tensor]:
        visible, hidden = model.split(samples)
        with torch.no_grad():
            return {
                "backbone_visible": model.backbone(views[0], visible),
                "teacher_masked": model.teacher.backbone(views[0], hidden),
            }
