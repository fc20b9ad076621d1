"""SwAV: prototypes are scaled at the start of the loss call; a hook makes the queue, which the loss call fills."""

from typing import Any

from torch import Tensor

from ssl_ray.models import Output, Progress, SwAV, SwAVQueue
from tests.conformance.orders.order import Order, Samples


class SwAVOrder(Order):
    def model(self, record: dict[str, Any], override: dict[str, Tensor], extra: dict[str, Any]) -> SwAV:
        model = super().model(record, override, extra)
        assert isinstance(model, SwAV)
        if "queue" in extra:  # (crops, images, dim)
            crops, size, dim = extra["queue"].shape
            model.queue = SwAVQueue(size, crops, dim).double()
            model.queue.rows.copy_(extra["queue"].transpose(0, 1))
            model.queue_start_epoch = 0
        return model

    def samples(self, draws: list[dict[str, Any]], extra: dict[str, Any]) -> Samples:
        assert not draws
        return {}

    def loss(self, model: SwAV, views: list[Tensor], samples: Samples, progress: Progress) -> Output:
        model.head.normalize_prototypes()
        return super().loss(model, views, samples, progress)

    def write_memories(self, model: SwAV, output: Output, progress: Progress) -> None:
        model.after_step(output.state, progress)

    def outside_state(self, model: SwAV) -> dict[str, Tensor]:
        return {} if model.queue is None else {"queue": model.queue.rows.transpose(0, 1)}
