"""DenseCL: both queues are filled at the end of the loss call; a hook sets the share of the dense part."""

from typing import Any

from torch import Tensor

from ssl_ray.models import DenseCL, Output, Progress
from tests.conformance.orders.order import Order, Samples


class DenseCLOrder(Order):
    sample_of_draw = {"randperm": "shuffle"}

    def model(self, record: dict[str, Any], override: dict[str, Tensor], extra: dict[str, Any]) -> DenseCL:
        model = super().model(record, override, extra)
        model.loss_lambda = extra["loss_lambda"]
        return model

    def samples(self, draws: list[dict[str, Any]], extra: dict[str, Any]) -> Samples:
        return super().samples(draws, {})

    def write_memories(self, model: DenseCL, output: Output, progress: Progress) -> None:
        model.queue.enqueue(output.state["keys"])
        model.dense_queue.enqueue(output.state["dense_keys"])

    def prediction(
        self, model: DenseCL, views: list[Tensor], samples: Samples, recorded: Samples
    ) -> dict[str, Tensor]:
        return {"q_grid": model(views, samples, mode="predict")}
