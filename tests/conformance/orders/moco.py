"""MoCo: the queue is filled at the end of the loss call."""

from ssl_ray.models import MoCo, Output, Progress
from tests.conformance.orders.order import Order


class MoCoOrder(Order):
    sample_of_draw = {"randperm": "shuffle"}

    def write_memories(self, model: MoCo, output: Output, progress: Progress) -> None:
        model.queue.enqueue(output.state["keys"])
