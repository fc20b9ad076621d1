"""NPID: the bank is written at the end of the loss call; draws that hit the image itself are repeated."""

from typing import Any

from torch import Tensor

from ssl_ray.models import NPID, Output, Progress
from tests.conformance.orders.order import Order, Samples


class NPIDOrder(Order):
    def samples(self, draws: list[dict[str, Any]], extra: dict[str, Any]) -> Samples:
        index: Tensor = extra["sample_idx"]
        samples = {"index": index}
        if draws:
            assert {draw["op"] for draw in draws} == {"negative_idx"}
            first, *again = (draw["value"] for draw in draws)
            negatives = first.view(len(index), -1).clone()
            for redrawn in again:
                negatives[negatives == index[:, None]] = redrawn
            samples["negatives"] = negatives
        return samples

    def write_memories(self, model: NPID, output: Output, progress: Progress) -> None:
        model.after_step(output.state, progress)
