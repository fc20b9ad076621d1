"""What a run's events say to people and to its record, and what its end needs of them."""

import math
import time
from collections.abc import Callable
from typing import Any

from ssl_ray.console import Console, TrainProgress, TrainStatus, percent
from ssl_ray.data.blocks import Broken
from ssl_ray.evaluation.alarm import IMAGES, NOT_FINITE
from ssl_ray.tracking import AnyTracker
from ssl_ray.training.control import Control
from ssl_ray.training.events import Begun, Failed, Flush, Hung, LeftOut, Metrics
from ssl_ray.training.folder import RunFolder
from ssl_ray.training.result import RunResult

PATIENCE_S = 120


class Teller:
    """Tells people what events say, hands metrics to the tracker, and keeps what the end of the run needs of them."""

    def __init__(
        self,
        result: RunResult,
        tracker: AnyTracker,
        folder: RunFolder,
        console: Console,
        progress: TrainProgress,
        control: Control | None,
        on_first_step: Callable[[], None],
    ) -> None:
        self.result, self.tracker = result, tracker
        self.folder, self.console, self.progress = folder, console, progress
        self.control, self.on_first_step = control, on_first_step
        self.last_news = time.monotonic()
        self.world_size = 0
        self.named: set[str] = set()

    def tell(self, event: Any) -> None:
        """None is no event: a while without news."""
        if event is None:
            if time.monotonic() - self.last_news > PATIENCE_S:
                self.console.warn(
                    f"no news for {PATIENCE_S} s: the cluster may be busy with other work (`ray status`), or a batch "
                    "is slow; still waiting"
                )
                self.last_news = math.inf  # once for each silence
            return
        self.last_news = time.monotonic()
        if isinstance(event, Metrics):
            self.tracker.log(event.values, event.step, event.timestamp)
        elif isinstance(event, Flush):
            self.tracker.flush()
        elif isinstance(event, TrainStatus):
            self.result.history.append(event)
            self.progress.update(event)
            if len(self.result.history) == 1:
                self.on_first_step()
        elif isinstance(event, dict):
            self.progress.note(describe_evaluation(event))
            if self.control is not None:
                self.control.on_evaluation(event)
        elif isinstance(event, Broken | LeftOut):
            self._broken(event)
        elif isinstance(event, Begun):
            if self.world_size:
                several = "s" if event.world_size > 1 else ""
                self.progress.note(
                    f"training goes on from step {event.step} on {event.world_size} worker{several}"
                )
            self.world_size = event.world_size
        elif isinstance(event, Failed):
            for rank, cause in sorted(event.causes.items()):
                self.console.warn(f"worker {rank} failed: {cause}")
        elif isinstance(event, Hung):
            stacks = self.folder.keep(f"hung-worker-{event.rank}.txt", event.stacks.encode())
            self.console.warn(
                f"worker {event.rank} took more than {event.minutes:g} min for a step (training.hang_minutes) and is "
                f"started again; where it was: {stacks}"
            )
        else:
            self.console.warn(event)

    def _broken(self, event: Broken | LeftOut) -> None:
        """An image is named once, whoever met it first."""
        in_training = isinstance(event, Broken)
        self.result.broken += in_training
        if event.path not in self.named:
            self.named.add(event.path)
            done = "another sample took its place" if in_training else "left out of the evaluation"
            self.console.warn(f"{event.path}: {event.reason}; {done}")


def describe_evaluation(result: dict[str, float]) -> str:
    """One line for an online evaluation."""
    parts = [f"epoch {result['epoch']:g}"]
    if result.get(NOT_FINITE):
        return (
            f"{parts[0]}: no accuracy, {result[NOT_FINITE]:g} of {result[IMAGES]:g} features are not finite"
        )
    if "val/knn_top1" in result:
        parts.append(f"kNN top-1 {percent(result['val/knn_top1'])} %")
    if "val/linear_top1" in result:
        parts.append(f"linear {percent(result['val/linear_top1'])} %")
    if "val/finetune_top1" in result:
        parts.append(f"top-1 {percent(result['val/finetune_top1'])} %")
    if "embedding/std" in result:
        parts.append(f"embedding std {result['embedding/std']:.4f}")
    if "embedding/rankme" in result:
        parts.append(f"rank {result['embedding/rankme']:.1f}")
    return ": ".join([parts[0], ", ".join(parts[1:]) or "evaluated"])
