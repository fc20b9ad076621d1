"""What the plan and an opened source cost for 1.28 million, 100 million and a billion images."""

import argparse
import gc
import statistics
import time
import tracemalloc
from typing import Any

import numpy as np
import psutil

from scaling_parts import opening
from ssl_ray.console import Console
from ssl_ray.data.plan import Plan

SAMPLES = (1_281_167, 100_000_000, 1_000_000_000)
BATCHES = (256, 4096)
WORKERS = 16
STEPS = 100  # that are timed, anywhere in an epoch


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("plan")
    group.add_argument(
        "--permuted",
        type=int,
        default=SAMPLES[1],
        help="samples up to which the baseline is measured (8 bytes each)",
    )
    group.add_argument(
        "--opened",
        type=int,
        nargs=2,
        default=[100_000, 1_000_000],
        help="images of the sources that are opened",
    )


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All tables."""
    plans = [_plan_cost(samples, batch) for samples in SAMPLES for batch in BATCHES]
    baseline = _baselines(arguments.permuted)
    console.table(
        f"Plan: indices of one rank of {WORKERS}; an epoch from {STEPS} steps anywhere in it",
        ["samples", "batch", "ms a step", "us an image", "s an epoch", "peak KB"],
        [
            (
                f"{row['samples']:,}",
                f"{row['batch']:,}",
                f"{row['step_ms']:.2f}",
                f"{row['image_us']:.1f}",
                f"{row['epoch_s']:,.1f}",
                f"{row['peak_kb']:.0f}",
            )
            for row in plans
        ],
    )
    console.table(
        "Baseline: np.random.permutation, which every process would hold",
        ["samples", "s an epoch", "peak MB", ""],
        [
            (
                f"{row['samples']:,}",
                f"{row['seconds']:.1f}",
                f"{row['peak_mb']:,.0f}",
                "measured" if row["measured"] else "extrapolated",
            )
            for row in baseline
        ],
    )
    return {"plan": plans, "permutation": baseline, **opening.measure(arguments.opened, console)}


def _plan_cost(samples: int, batch: int) -> dict[str, Any]:
    plan = Plan(samples, batch, seed=0)
    steps = np.random.default_rng(0).integers(0, plan.steps_per_epoch, STEPS).tolist()
    plan.indices(0, 0, WORKERS)
    seconds = []
    for step in steps:
        started = time.perf_counter()
        plan.indices(step, 0, WORKERS)
        seconds.append(time.perf_counter() - started)
    tracemalloc.start()
    plan.indices(steps[0], 0, WORKERS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    step_seconds = statistics.median(seconds)
    return {
        "samples": samples,
        "batch": batch,
        "step_ms": 1e3 * step_seconds,
        "image_us": 1e6 * step_seconds * WORKERS / batch,
        "epoch_s": step_seconds * plan.steps_per_epoch,
        "peak_kb": peak / 2**10,
    }


def _baselines(most: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for samples in SAMPLES:
        if samples <= most and psutil.virtual_memory().available > 1.5 * 8 * samples:
            rows.append({"samples": samples, "measured": True, **_permutation_cost(samples)})
        else:
            growth = samples / rows[-1]["samples"]
            costs = {name: rows[-1][name] * growth for name in ("seconds", "peak_mb")}
            rows.append({"samples": samples, "measured": False, **costs})
    return rows


def _permutation_cost(samples: int) -> dict[str, float]:
    gc.collect()
    tracemalloc.start()  # NumPy tells it of its arrays; one allocation costs nothing
    started = time.perf_counter()
    np.random.default_rng(0).permutation(samples)
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"seconds": seconds, "peak_mb": peak / 2**20}
