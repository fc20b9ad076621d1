"""What the full stack costs per training step, against a bare torch loop.

Both train the same recipe with the same number of threads on the same views. The bare loop has its batches ready in
memory and does nothing but forward, backward, step and after_step; the full stack is what `ssl-ray pretrain` runs: Ray
Data making the views, Ray Train, schedules, logging. Rounds alternate, so that a busy machine disturbs both alike.

    python benchmarks/overhead.py [--recipe moco] [--steps 120] [--rounds 3] [--json]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from ssl_ray.console import Console
from ssl_ray.data.blocks import StreamConfig, make_block
from ssl_ray.data.plan import Plan
from ssl_ray.data.source import Dataset, open_dataset
from ssl_ray.experiments import load_recipe
from ssl_ray.models.base import Progress
from ssl_ray.recipe import Recipe, overrides
from ssl_ray.resolve import resolve
from ssl_ray.training.optim import build_optimizer

WARMUP_STEPS = 10
WINDOW = 5  # steps per reading: the full stack reports a mean over so many
READY_BATCHES = 4


def recipe_of(name: str, dataset: Dataset, steps: int) -> Recipe:
    """The recipe without what is not part of a step: evaluation and checkpoints."""
    chosen = load_recipe(name, info=dataset.train.info).recipe
    settings = {
        "evaluation.every_epochs": None,
        "training.checkpoint_minutes": None,
        "training.log_steps": WINDOW,
        "training.max_steps": steps,
    }
    return resolve(overrides(chosen, settings), dataset.train.info).recipe


def stream_of(recipe: Recipe, dataset: Dataset, steps: int) -> StreamConfig:
    """The recipe's stream."""
    plan = Plan(dataset.train.info.num_samples, recipe.training.global_batch_size, recipe.training.seed)
    return StreamConfig(dataset.train, recipe.views.build(), plan, total_steps=steps)


def bare(recipe: Recipe, dataset: Dataset, steps: int) -> list[float]:
    """Step times, seconds, of a plain loop over batches in memory; one reading per window."""
    stream = stream_of(recipe, dataset, READY_BATCHES)
    batches = []
    for step in range(READY_BATCHES):
        columns, _ = make_block(stream, step, 1, rank=0, world_size=1)
        tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
        views = [
            tensors.pop(f"view_{i}").permute(0, 3, 1, 2).contiguous()
            for i in range(len(stream.pipeline.sizes))
        ]
        if recipe.training.channels_last:
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        batches.append((views, tensors))
    torch.manual_seed(recipe.training.seed)
    algorithm = recipe.algorithm.build()
    if recipe.training.channels_last:
        algorithm.to(memory_format=torch.channels_last)
    assert recipe.optimization.lr is not None
    optimizer = build_optimizer(
        recipe.optimization.optimizer, algorithm.param_groups(), recipe.optimization.lr
    )
    readings, started = [], time.perf_counter()
    for step in range(steps):
        views, samples = batches[step % READY_BATCHES]
        output = algorithm(views, samples, mode="loss")
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        algorithm.after_step(output.state, Progress(step, steps, 0, 1))
        if (step + 1) % WINDOW == 0:
            readings.append((time.perf_counter() - started) / WINDOW)
            started = time.perf_counter()
    return readings[WARMUP_STEPS // WINDOW :]


def bare_in_own_process(
    arguments: argparse.Namespace, threads: int, busy_neighbour: bool = False
) -> list[float]:
    """The bare loop as a training worker would have it: as many threads, a fresh process.

    busy_neighbour: with another process making views all the while, as a data task does.
    """
    command = [
        sys.executable,
        __file__,
        "--bare",
        f"--recipe={arguments.recipe}",
        f"--steps={arguments.steps}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    neighbour = (
        subprocess.Popen([*command, "--make-views"], env=environment, stdout=subprocess.DEVNULL)
        if busy_neighbour
        else None
    )
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
    readings: list[float] = json.loads(done.stdout)
    return readings


def full(recipe: Recipe, dataset: Dataset, resources: Any, folder: str) -> tuple[list[float], list[float]]:
    """Step times, seconds, and shares of them spent waiting for data, as the run itself reports them."""
    from ssl_ray.tracking import make_tracker, open_run, tracking_settings
    from ssl_ray.training.folder import RunFolder
    from ssl_ray.training.run import begin, follow
    from ssl_ray.workers import Workers

    name = f"overhead-{time.time_ns()}"
    tracked = open_run(tracking_settings(f"{folder}/{name}", uri=f"sqlite:///{folder}/mlflow.db"), name=name)
    place = RunFolder.at(folder, name)
    with tracked, make_tracker(tracked.target) as tracker:
        run = begin(recipe, dataset, place, workers=Workers.exactly(1), resources=resources)
        with run.ended(None):
            result = follow(run, place, tracker=tracker, console=Console("quiet"))
    steady = result.history[WARMUP_STEPS // WINDOW :]
    batch = recipe.training.global_batch_size
    return (
        [batch / status.images_per_second for status in steady if status.images_per_second],
        [status.data_wait for status in steady if status.data_wait is not None],
    )


def make_views_for_ever(recipe: Recipe, dataset: Dataset) -> None:
    """Keeps one core busy with what a data task does; ended by whoever started it."""
    import cv2

    cv2.setNumThreads(0)
    stream = stream_of(recipe, dataset, 10**9)
    step = 0
    while True:
        make_block(stream, step, 1, rank=0, world_size=1)
        step += 1


def main() -> None:
    """Measures, prints a table, and with --json one line of JSON last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="moco")
    parser.add_argument("--data", default="fashion")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make-views", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.data)
    recipe = recipe_of(arguments.recipe, dataset, arguments.steps)
    if arguments.make_views:
        make_views_for_ever(recipe, dataset)
    if arguments.bare:
        print(json.dumps(bare(recipe, dataset, arguments.steps)))
        return

    from ssl_ray.training import cluster

    alone: list[float] = []
    crowded: list[float] = []
    stack: list[float] = []
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        cluster.connect(None, verbose=False)
        resources = cluster.fit_workers(1, None, None)
        threads = max(1, int(resources.cpus))
        for round_ in range(arguments.rounds):
            print(f"round {round_ + 1} of {arguments.rounds}", file=sys.stderr)
            alone += bare_in_own_process(arguments, threads)
            step_times, data_waits = full(recipe, dataset, resources, folder)
            stack += step_times
            waits += data_waits
            crowded += bare_in_own_process(arguments, threads, busy_neighbour=True)
        cluster.disconnect()

    base, ours, neighbour = map(statistics.median, (alone, stack, crowded))
    wait = statistics.median(waits)
    result = {
        "ratio_vs_bare": round(ours / base, 3),
        "threads": threads,
        "bare_step_ms": round(1e3 * base, 1),
        "full_step_ms": round(1e3 * ours, 1),
        "data_wait_share": round(wait, 4),
        "busy_neighbour_ratio": round(neighbour / base, 3),
    }
    console = Console()
    console.print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; "
        f"{arguments.recipe} on {arguments.data}, global batch {recipe.training.global_batch_size}, one worker, "
        f"torch threads {threads}; medians of {len(stack)} readings over {arguments.rounds} rounds"
    )
    console.table(
        "Step time",
        ["loop", "ms", "ratio"],
        [
            ("bare torch, batches in memory", f"{1e3 * base:.1f}", "1.000"),
            ("full stack", f"{1e3 * ours:.1f}", f"{ours / base:.3f}"),
            ("  of which waiting for data", f"{1e3 * ours * wait:.1f}", f"{ours * wait / base:.3f}"),
            (
                "bare torch beside a process that makes views",
                f"{1e3 * neighbour:.1f}",
                f"{neighbour / base:.3f}",
            ),
        ],
    )
    if arguments.json:
        print(json.dumps({arguments.recipe: result}))


if __name__ == "__main__":
    main()
