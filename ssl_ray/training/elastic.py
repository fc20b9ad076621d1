"""Elastic worker groups: of the sizes that a recipe allows the largest for which there is room, resized without loss.

Ray Train's own policy takes any size of the range and every CPU it can get, and resizes at once, which throws away the
steps since the last checkpoint. This one keeps to sizes that divide the batch, leaves the data a whole CPU, looks at
the nodes that are alive rather than at reservations that may be 20 s old, and asks for a checkpoint before it resizes.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from ssl_ray.errors import UserError
from ssl_ray.training.cluster import Resources, alive_nodes, fit_workers, place, serves

ANSWER_S = 5.0
# A group whose data has nowhere left to be made saves nothing more; it is resized without.
SAVE_S = 120.0


class FixedGroup(FixedScalingPolicy):  # type: ignore[misc]
    """Ray Train's policy of one size, which asks no autoscaler for it: that takes a process, and there is none."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called by Ray Train, which would ask from here on."""

    def _send_resource_request(self) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class FittingGroup(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray Train's elastic policy, bound to `sizes` (ascending). dealer: of the stream; passes on what is asked."""

    def __init__(
        self, scaling_config: ScalingConfig, sizes: tuple[int, ...], resources: Resources, dealer: Any
    ) -> None:
        super().__init__(scaling_config)
        self.sizes, self.resources, self.dealer = sizes, resources, dealer
        self.pending: ResizeDecision | None = None
        self.asked, self.saved = 0.0, False

    def _count_possible_workers(self, reserved_resources: Mapping[str, dict[str, float]]) -> int:
        room, _ = place(self.sizes[-1], self.resources, list(reserved_resources.values()))
        return largest(self.sizes, room, self.resources, alive_nodes())

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """The largest group for which there is room, nothing where there is none."""
        self.pending, self.saved = None, False
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """As Ray Train decides, but only once the group has saved what it would lose."""
        if self.pending is None:
            decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if isinstance(decision, ResizeDecision):
                self.pending, self.asked = decision, time.monotonic()
                self.dealer.request_checkpoint.remote()
            return NoopDecision()
        if not self.saved:  # and once it is, one more poll of the workers, which registers the checkpoint
            self.saved = self._saved() or time.monotonic() - self.asked > SAVE_S
            return NoopDecision()
        decision, self.pending, self.saved = self.pending, None, False
        return decision

    def _saved(self) -> bool:
        with contextlib.suppress(ray.exceptions.RayError):  # the dealer is busy, or being started again
            return not ray.get(self.dealer.checkpoint_pending.remote(), timeout=ANSWER_S)
        return False


def fit_group(
    sizes: tuple[int, ...], cpus: float | None, gpus: float | None, say: Callable[[str], None]
) -> Resources:
    """What each worker takes: as `fit_workers` decides for the smallest group; of a group that may grow a CPU.

    A worker that took most of a machine would leave no room on it for a second one.
    """
    if len(sizes) > 1 and cpus is None:
        with contextlib.suppress(UserError):
            return fit_workers(sizes[0], 1.0, gpus, say)
    return fit_workers(sizes[0], cpus, gpus, say)


def first_size(sizes: tuple[int, ...], resources: Resources) -> int:
    """The size that a group will begin with."""
    return largest(sizes, sizes[-1], resources, alive_nodes()) or sizes[0]


def largest(sizes: tuple[int, ...], room: int, resources: Resources, nodes: list[dict[str, float]]) -> int:
    """The largest size of at most `room` workers that the nodes serve, with a CPU left for the data; 0 if none is."""
    return next((n for n in reversed(sizes) if n <= room and serves(n, resources, nodes)), 0)
