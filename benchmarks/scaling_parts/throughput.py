"""Throughput on 1, 2, 4 workers: the real stack, with compute replaced by sleep, and then with none at all."""

import argparse
import math
import os
import sys
import time
from typing import Any

import numpy as np

from scaling_parts import stack
from scaling_parts.bare import bare_steps
from ssl_ray.console import Console
from ssl_ray.data.pipeline import make_batch
from ssl_ray.data.source import Dataset, open_dataset
from ssl_ray.experiments import load
from ssl_ray.recipe import Recipe

READING_S = 0.5  # from one reading of a sleeping run to the next
# Told apart, as the stream begins with short blocks and makes views ahead while Ray's processes start.
EARLY_S = 6.0
REAL_LOG_STEPS, REAL_SKIP = 5, 10
TRAINING_CPUS = 2.0  # logical CPUs that the workers share; the data tasks have DATA_CPUS, whatever W is
DATA_CPUS = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("throughput")
    group.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    group.add_argument("--sleep", type=float, default=0.1, help="seconds of a step of one worker")
    group.add_argument("--batch", type=int, default=64, help="global batch of one worker, views nearly free")
    group.add_argument("--seconds", type=float, default=24.0, help="of sleep in a run")
    group.add_argument("--real-batch", type=int, default=256, help="global batch, MoCo v2's views")
    group.add_argument("--real-steps", type=int, default=200)


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Both tables."""
    if arguments.seconds <= EARLY_S + READING_S:
        raise SystemExit(
            f"--seconds: {arguments.seconds:g}; the first {EARLY_S:g} s are told apart, give more"
        )
    dataset = open_dataset("fashion")
    result: dict[str, Any] = {"cores": os.cpu_count(), "logical_cpus": int(TRAINING_CPUS) + DATA_CPUS}
    cases = [
        (regime, workers, *sizes)
        for regime in ("fixed global batch", "fixed batch per worker")
        for workers in arguments.workers
        if (sizes := _sizes(regime, workers, arguments)) is not None
    ]
    recipes = [
        stack.sleeper(
            dataset,
            seconds=sleep,
            batch=batch,
            steps=round(arguments.seconds / sleep),
            log_steps=_log_steps(sleep),
        )
        for _, _, batch, sleep in cases
    ]
    bare = _bare(cases, recipes)
    started = time.perf_counter()
    with stack.ray_here(result["logical_cpus"]):
        result["ray_seconds"] = time.perf_counter() - started
        result["sleeping"] = [
            _sleeping_row(case, recipe, dataset, bare_seconds)
            for case, recipe, bare_seconds in zip(cases, recipes, bare, strict=True)
        ]
        core = images_per_core(dataset, arguments.real_batch)
        result["make_batch_images_per_second"] = core
        result["real"] = [_real_row(workers, dataset, arguments, core) for workers in arguments.workers]
    _print(result, console)
    return result


def _sizes(regime: str, workers: int, arguments: argparse.Namespace) -> tuple[int, float] | None:
    """Global batch, and seconds that a worker's share of it sleeps. None for what the other regime has measured."""
    if regime == "fixed global batch":
        return arguments.batch, arguments.sleep / workers
    return None if workers == 1 else (arguments.batch * workers, arguments.sleep)


def _log_steps(sleep: float) -> int:
    return max(1, round(READING_S / sleep))


def _bare(cases: list[Any], recipes: list[Recipe]) -> list[float]:
    """Seconds of a step of the bare loop for each case; one group of processes for each number of workers."""
    seconds = [math.nan] * len(cases)
    for workers in sorted({case[1] for case in cases}):
        places = [i for i, case in enumerate(cases) if case[1] == workers]
        measured = bare_steps([recipes[i] for i in places], workers)
        for place, value in zip(places, measured, strict=True):
            seconds[place] = value
    return seconds


def _sleeping_row(
    case: tuple[str, int, int, float], recipe: Recipe, dataset: Dataset, bare: float
) -> dict[str, Any]:
    regime, workers, batch, sleep = case
    early = round(EARLY_S / READING_S)
    ran = stack.train(
        recipe,
        dataset,
        workers=workers,
        cpus_per_worker=TRAINING_CPUS / workers,
        skip=early * recipe.training.log_steps,
    )
    early_step, _ = stack.rates(ran.history[:early], batch, 1)
    step, wait = stack.rates(ran.history, batch, early)
    return _told(
        {
            "regime": regime,
            "workers": workers,
            "global_batch": batch,
            "sleep_ms": 1e3 * sleep,
            "bare_ms": 1e3 * bare,
            "step_ms": 1e3 * step,
            "early_step_ms": 1e3 * early_step,
            "over_sleep": step / sleep,
            "over_bare": step / bare,
            "data_wait": wait,
            "images_per_second": batch / step,
            "ideal_images_per_second": batch / sleep,
            "cores_busy": ran.cores_busy,
            "first_steps_s": ran.first_seconds,
        }
    )


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """The row, shown at once: a run takes half a minute."""
    print(
        ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items()), file=sys.stderr
    )
    return row


def _real_row(workers: int, dataset: Dataset, arguments: argparse.Namespace, core: float) -> dict[str, Any]:
    recipe = stack.sleeper(
        dataset,
        seconds=0.0,
        batch=arguments.real_batch,
        steps=arguments.real_steps,
        log_steps=REAL_LOG_STEPS,
        views=load("moco").SMALL.views,
    )
    ran = stack.train(
        recipe,
        dataset,
        workers=workers,
        cpus_per_worker=TRAINING_CPUS / workers,
        ahead=False,
        skip=REAL_SKIP * REAL_LOG_STEPS,
    )
    step, wait = stack.rates(ran.history, arguments.real_batch, REAL_SKIP)
    rate = arguments.real_batch / step
    return _told(
        {
            "workers": workers,
            "images_per_second": rate,
            "of_all_cores": rate / (core * (os.cpu_count() or 1)),
            "data_wait": wait,
            "cores_busy": ran.cores_busy,
            "cpu_ms_per_image": 1e3 * ran.cpu_per_image,
        }
    )


def images_per_core(dataset: Dataset, batch: int, seconds: float = 5.0) -> float:
    """Images per second of CPU time that making MoCo v2's views alone takes, read and decoded from the same source."""
    pipeline = load("moco").SMALL.views.build()
    images, round_ = 0, 0
    make_batch(pipeline, dataset.train.read(np.arange(batch)), np.arange(batch), 0, 0)
    started = time.process_time()
    while time.process_time() - started < seconds:
        indices = (np.arange(batch) + batch * round_) % dataset.train.info.num_samples
        make_batch(pipeline, dataset.train.read(indices), indices, 0, 0)
        images, round_ = images + batch, round_ + 1
    return images / (time.process_time() - started)


def _print(result: dict[str, Any], console: Console) -> None:
    console.print(
        f"{result['cores']} cores; a Ray cluster of {result['logical_cpus']} logical CPUs on them "
        f"({result['ray_seconds']:.1f} s to start): {TRAINING_CPUS:g} for all workers together, who sleep, "
        f"{DATA_CPUS} for data tasks"
    )
    console.table(
        "Views nearly free (28 px, decoded only), compute replaced by sleep",
        [
            *("regime", "W", "batch", "sleep ms", "bare DDP ms", "ssl-ray ms", "x sleep", "x bare"),
            *(
                "data-wait %",
                "images/s",
                "ideal",
                "cores busy",
                "first reading s",
                f"first {EARLY_S:g} s: ms",
            ),
        ],
        [
            (
                row["regime"],
                row["workers"],
                row["global_batch"],
                *(f"{row[name]:.1f}" for name in ("sleep_ms", "bare_ms", "step_ms")),
                *(f"{row[name]:.3f}" for name in ("over_sleep", "over_bare")),
                f"{100 * row['data_wait']:.1f}",
                f"{row['images_per_second']:,.0f}",
                f"{row['ideal_images_per_second']:,.0f}",
                f"{row['cores_busy']:.2f}",
                f"{row['first_steps_s']:.1f}",
                f"{row['early_step_ms']:.1f}",
            )
            for row in result["sleeping"]
        ],
    )
    core, cores = result["make_batch_images_per_second"], result["cores"]
    console.table(
        f"Two views of MoCo v2 (28 px), no compute at all; make_batch alone {core:,.0f} images/s per core, "
        f"{core * cores:,.0f} on {cores}",
        ["W", "images/s", "% of all cores' make_batch", "data-wait %", "cores busy", "CPU ms per image"],
        [
            (
                row["workers"],
                f"{row['images_per_second']:,.0f}",
                f"{100 * row['of_all_cores']:.0f}",
                f"{100 * row['data_wait']:.0f}",
                f"{row['cores_busy']:.2f}",
                f"{row['cpu_ms_per_image']:.3f}",
            )
            for row in result["real"]
        ],
    )
    most = max(row["workers"] for row in result["real"])
    console.print(
        f"{most} workers, their data tasks, the driver and Ray's own processes share {cores} cores here: a cluster "
        "has a core for each."
    )
