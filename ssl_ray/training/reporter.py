"""What a run says while it trains: metrics for its record, status and notes for the driver's console."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.console import TrainStatus
from ssl_ray.evaluation.alarm import NOT_FINITE, Collapse
from ssl_ray.models.base import Progress
from ssl_ray.training.context import WorkerContext
from ssl_ray.training.events import LeftOut
from ssl_ray.training.notices import Notices


class Reporter:
    """Rank 0's voice: metrics for MLflow, status and notes for the driver's console. Silent on other ranks.

    images_per_second: of all steps so far, without the time that `paused` took out. A context manager, in which rank 0
    also sends what the package logs as a warning.
    """

    def __init__(
        self,
        context: WorkerContext,
        *,
        first_step: int,
        stop_step: int,
        images_per_step: int,
    ) -> None:
        self.context, self.rank, self.device = context, context.rank, context.device
        self.stop_step, self.images_per_step = stop_step, images_per_step
        self.images_per_second = 0.0
        self.first_step = self.logged_step = first_step
        self.seconds = 0.0
        self.waited = 0.0
        self.clock = time.perf_counter()
        self.broken: set[str] = set()
        self._notices = Notices(self.send) if self.rank == 0 else contextlib.nullcontext()

    def __enter__(self) -> Self:
        self._notices.__enter__()  # this process's own stderr is a worker's log file
        return self

    def __exit__(self, *error: Any) -> None:
        self._notices.__exit__(*error)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here counts for no step."""
        started = time.perf_counter()
        yield
        self.clock += time.perf_counter() - started

    def step(self, progress: Progress, metrics: dict[str, Tensor], lr: float, waited: float) -> None:
        """Logs a step. A collective: metrics are means over ranks."""
        names = sorted(metrics)
        values = distributed.mean(torch.stack([metrics[name].float() for name in names])).tolist()
        now = time.perf_counter()
        done = progress.step + 1
        steps, seconds = done - self.logged_step, now - self.clock
        data_wait = (waited - self.waited) / seconds
        images = self.images_per_step
        self.logged_step, self.waited, self.clock = done, waited, now
        self.seconds += seconds
        self.images_per_second = (done - self.first_step) * images / self.seconds
        if self.rank != 0:
            return
        named = dict(zip(names, values, strict=True))
        record = {f"train/{name}": value for name, value in named.items()}
        record |= {
            "train/lr": lr,
            "perf/images_per_second": steps * images / seconds,
            "perf/step_time": seconds / steps,
            "perf/data_wait": data_wait,
        }
        if self.device.type == "cuda":
            record["sys/gpu_mem_gb"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.context.log(record, step=done)
        self.send(
            TrainStatus(
                step=done,
                total_steps=self.stop_step,
                epoch=progress.epoch + 1,
                total_epochs=progress.total_epochs,
                loss=named["loss"],
                lr=lr,
                images_per_second=steps * images / seconds,
                data_wait=data_wait,
                eta=(self.stop_step - done) * seconds / steps,
            )
        )

    def evaluation(
        self, result: dict[str, float], alarms: list[Collapse], broken: dict[str, str], seconds: float
    ) -> None:
        """Logs an online evaluation that took so long, the collapses that it shows, and what it could not read."""
        if self.rank != 0:
            return
        metrics = {name: value for name, value in result.items() if "/" in name}
        metrics |= {"collapse/alarms": len(alarms), "collapse/not_finite": result.get(NOT_FINITE, 0)}
        metrics["perf/evaluation_time"] = seconds
        self.context.log(metrics, step=int(result["step"]))
        self.send(result)
        for alarm in alarms:
            self.send(str(alarm))
        for path in broken.keys() - self.broken:
            self.send(LeftOut(path, broken[path]))
        self.broken |= broken.keys()

    def send(self, event: Any) -> None:
        """To the driver, from rank 0; not waited for."""
        if self.rank == 0:
            self.context.send(event)

    def flush(self) -> None:
        """Waits until a kill would lose none of the metrics; to be called before a checkpoint."""
        if self.rank == 0:
            self.context.flush()

    def close(self, step: int, broken: int) -> None:
        """Logs what is known at the end. broken: images that could not be read."""
        if self.rank == 0:
            self.context.log({"data/broken_images": broken}, step=step)
