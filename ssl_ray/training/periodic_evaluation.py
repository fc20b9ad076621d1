"""Online evaluation on its cadence: before the first step, after every so many epochs, and at the end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ssl_ray import distributed
from ssl_ray.data.pipeline import ViewPipeline
from ssl_ray.data.plan import Plan
from ssl_ray.data.source import Dataset
from ssl_ray.evaluation.alarm import Collapse, collapses
from ssl_ray.evaluation.classifier import ClassifierEvaluation
from ssl_ray.evaluation.extract import TrainingSet
from ssl_ray.evaluation.online import OnlineEvaluation
from ssl_ray.models.base import BaseModel
from ssl_ray.recipe import Recipe
from ssl_ray.training.reporter import Reporter

# Up to this side raw pixels are a fair rival in kNN: their accuracy is shown as a baseline.
SMALL_IMAGE = 64


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """In here torch computes with so many threads on the CPU; None changes nothing."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class PeriodicEvaluation:
    """Evaluates an algorithm while it trains. Every rank has one, and runs it with the others.

    results: of all evaluations of the run, those from before a restart included; each has its epoch and step.
    training_set: what `before_epoch` gets. threads: torch's while it runs, None for as many as there are.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        plan: Plan,
        algorithm: BaseModel,
        views: ViewPipeline,
        reporter: Reporter,
        results: list[dict[str, float]],
        threads: int | None = None,
    ) -> None:
        self.threads = threads
        self.settings, self.plan, self.algorithm = recipe.evaluation, plan, algorithm
        self.reporter, self.results = reporter, results
        self.size, device = views.eval_size, reporter.device
        low_precision = torch.bfloat16 if recipe.training.precision == "bf16" else None
        self.evaluate = (ClassifierEvaluation if algorithm.needs_labels else OnlineEvaluation)(
            dataset.train,
            dataset.val,
            size=self.size,
            monitors=self.settings.monitors,
            k=self.settings.k,
            temperature=self.settings.temperature,
            max_samples=self.settings.max_samples,
            views=views,
            view_images=self.settings.view_images,
            lidar_views=self.settings.lidar_views,
            device=device,
            autocast=low_precision,
        )
        self.training_set = TrainingSet(
            dataset.train, algorithm, size=self.size, device=device, autocast=low_precision
        )

    @property
    def alarms(self) -> list[Collapse]:
        """What the last evaluation warns of."""
        return collapses(self.results)

    def due(self, step: int, *, at_end: bool) -> bool:
        """Whether it is time after so many steps: none, an epoch that counts, or all."""
        every = self.settings.every_epochs
        if every is None:
            return False
        return at_end or step % (every * self.plan.steps_per_epoch) == 0

    def run(self, step: int) -> bool:
        """Returns whether the result is a reason to stop, the same on all ranks."""
        started = time.perf_counter()
        with self.reporter.paused(), torch_threads(self.threads):
            distributed.average_batch_norm_(self.algorithm)
            result: dict[str, Any] = self.evaluate.run(self.algorithm, trained=step > 0)
            if step == 0 and self.size <= SMALL_IMAGE and (top1 := self.evaluate.raw_pixel_knn()) is not None:
                result["baseline/raw_pixels_knn_top1"] = top1
        self.results.append({"epoch": round(step / self.plan.steps_per_epoch, 2), "step": step, **result})
        alarms = self.alarms
        broken = self.evaluate.broken | self.training_set.broken
        self.reporter.evaluation(self.results[-1], alarms, broken, time.perf_counter() - started)
        return bool(distributed.agree(bool(alarms) and self.settings.on_collapse == "stop")[0])
