"""Runs of the real stack for the parts of the benchmark: a local Ray cluster, and what a run said while it trained."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ssl_ray.console import Console, TrainProgress
from ssl_ray.data.source import Dataset
from ssl_ray.experiments import load_recipe
from ssl_ray.recipe import Recipe, overrides
from ssl_ray.resolve import resolve
from ssl_ray.spec import Spec

HERE = Path(__file__).parent
CPU_SECONDS_EVERY = 2.0  # looking at all processes costs CPU itself


def sleeper(
    dataset: Dataset, *, seconds: float, batch: int, steps: int, log_steps: int, views: Spec | None = None
) -> Recipe:
    """The sleeping recipe for so many steps of `seconds` each; views: in place of its own."""
    chosen = load_recipe(str(HERE / "sleeper.py")).recipe
    values = {
        "algorithm.seconds": seconds,
        "views": views or chosen.views,
        "training.global_batch_size": batch,
        "training.max_steps": steps,
        "training.epochs": 2 + steps * batch // dataset.train.info.num_samples,
        "training.log_steps": log_steps,
    }
    return resolve(overrides(chosen, values), dataset.train.info).recipe


@contextmanager
def ray_here(cpus: int) -> Iterator[None]:
    """A Ray cluster on this machine with so many logical CPUs; its workers can import the sleeping recipe."""
    from ssl_ray.training import cluster, local_cluster

    local_cluster.set_environment()
    import ray

    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
    )
    try:
        yield
    finally:
        cluster.disconnect()


def processes() -> list[psutil.Process]:
    """This process and all of Ray's, its descendants."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def cpu_seconds() -> float:
    """Of all processes so far."""
    total = 0.0
    for process in processes():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


@dataclass
class Readings(TrainProgress):
    """What a run reports, and the CPU-seconds of all processes by then: (step, CPU-seconds, time), now and then."""

    also: Callable[[int], None] = lambda step: None
    cpu: list[tuple[int, float, float]] = field(default_factory=list)

    def update(self, status: Any) -> None:
        """As TrainProgress."""
        now = time.perf_counter()
        if not self.cpu or now - self.cpu[-1][2] > CPU_SECONDS_EVERY:
            self.cpu.append((status.step, cpu_seconds(), now))
        self.also(status.step)


class _Listening(Console):
    """Says nothing but warnings, and hands on what a run reports."""

    def __init__(self, readings: Readings) -> None:
        super().__init__("quiet")
        self.readings = readings

    def progress(self, *_: Any, **__: Any) -> TrainProgress:
        return self.readings


@dataclass(frozen=True)
class Ran:
    """What a run took. first_seconds: from the call to its first reading. history: of TrainStatus."""

    history: list[Any]
    first_seconds: float
    cpu_per_image: float
    cores_busy: float


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    workers: int,
    cpus_per_worker: float,
    ahead: bool = True,
    skip: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
) -> Ran:
    """Trains on the connected cluster as `ssl-ray pretrain` does, MLflow and all.

    ahead: views are made while the workers start, as always; without, the stream starts with them, so that what was
    made before does not count. skip: steps before CPU time counts.
    """
    from ssl_ray.tracking import make_tracker, open_run, tracking_settings
    from ssl_ray.training.cluster import Resources
    from ssl_ray.training.folder import RunFolder
    from ssl_ray.training.run import begin, follow
    from ssl_ray.workers import Workers

    readings = Readings(on_step)
    first: list[float] = []
    with tempfile.TemporaryDirectory() as storage:
        place = RunFolder.at(storage, "run")
        settings = tracking_settings(f"{storage}/run", uri=f"sqlite:///{storage}/mlflow.db")
        with open_run(settings, name="run") as tracked, make_tracker(tracked.target) as tracker:
            started = time.perf_counter()
            run = begin(
                recipe,
                dataset,
                place,
                workers=Workers.exactly(workers),
                resources=Resources(cpus_per_worker, 0.0),
                ahead=ahead,
            )
            with run.ended(None):
                result = follow(
                    run,
                    place,
                    tracker=tracker,
                    console=_Listening(readings),
                    on_first_step=lambda: first.append(time.perf_counter() - started),
                )
    counted = [reading for reading in readings.cpu if reading[0] > skip] or readings.cpu
    (step, cpu, now), (last_step, last_cpu, last) = counted[0], counted[-1]
    images = max(1, last_step - step) * recipe.training.global_batch_size
    return Ran(result.history, first[0], (last_cpu - cpu) / images, (last_cpu - cpu) / max(1e-9, last - now))


def rates(history: list[Any], batch: int, skip: int) -> tuple[float, float]:
    """Mean seconds of a step, and share of them spent waiting for data, after the first `skip` readings."""
    step = history[skip - 1].step
    seconds = waited = 0.0
    for status in history[skip:]:
        taken = (status.step - step) * batch / status.images_per_second
        seconds, waited, step = seconds + taken, waited + taken * status.data_wait, status.step
    steps = history[-1].step - history[skip - 1].step
    return seconds / steps, waited / seconds
