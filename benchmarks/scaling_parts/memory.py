"""Memory over many steps: what every process and the object store hold, early and late. It should be flat."""

import argparse
import os
import statistics
import sys
from typing import Any

import numpy as np
import psutil

from scaling_parts import stack
from ssl_ray.console import Console
from ssl_ray.data.source import open_dataset

CPUS = 4
BATCH = 64
# By the title that Ray gives a process; what is none of these is "rest".
KINDS = {
    "gcs_server": "gcs",
    "raylet": "raylet",
    "ray::Dealer": "dealer",
    "ray::RayTrainWorker": "worker",
    "ray::_RayTrainWorker": "worker",
    "ray::TrainController": "controller",
    "ray::MapBatches": "data task",
    "ray::map_batches": "data task",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory")
    group.add_argument("--memory-steps", type=int, default=10_000)
    group.add_argument("--memory-workers", type=int, default=2)
    group.add_argument("--sample-every", type=int, default=200, help="steps from one look to the next")


class Watch:
    """Looks at all processes and at the object store every so many steps. rows: one dict of MB for each look."""

    def __init__(self, every: int) -> None:
        self.every, self.next = every, every
        self.rows: list[dict[str, float]] = []
        self.kinds: dict[int, str] = {}

    def __call__(self, step: int) -> None:
        """Called at each reading of the run."""
        if step < self.next:
            return
        self.next = step + self.every
        row: dict[str, float] = {"step": step, **_object_store()}
        for process in stack.processes():
            try:
                title, memory = " ".join(process.cmdline()), process.memory_info()
            except psutil.Error:
                continue
            kind = self._kind(process.pid, title)
            private = (
                memory.rss - memory.shared
            ) / 2**20  # what is shared is the object store, and libraries
            row[kind] = max(row.get(kind, 0.0), private)
            row["all"] = row.get("all", 0.0) + private
            row["processes"] = row.get("processes", 0) + 1
        self.rows.append(row)

    def _kind(self, pid: int, title: str) -> str:
        """A data task's process is idle between two tasks: once known, it keeps its kind."""
        if pid == os.getpid():
            return "driver"
        program = os.path.basename(title.partition(" ")[0])
        found = next((kind for start, kind in KINDS.items() if program.startswith(start)), None)
        return self.kinds.setdefault(pid, found) if found else self.kinds.get(pid, "rest")


def _object_store() -> dict[str, float]:
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    address = ray.get_runtime_context().gcs_address
    stats = get_memory_info_reply(get_state_from_address(address)).store_stats
    return {
        "object store": stats.object_store_bytes_used / 2**20,
        "objects": stats.num_local_objects,
        "spilled": stats.spilled_bytes_total / 2**20,
    }


def size_of(reading: Any) -> int:
    """Bytes of one TrainStatus and its values."""
    values = vars(reading)
    return sys.getsizeof(reading) + sys.getsizeof(values) + sum(map(sys.getsizeof, values.values()))


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """One run, and its table."""
    dataset = open_dataset("fashion")
    recipe = stack.sleeper(dataset, seconds=0.0, batch=BATCH, steps=arguments.memory_steps, log_steps=10)
    watch, workers = Watch(arguments.sample_every), arguments.memory_workers
    with stack.ray_here(CPUS):
        ran = stack.train(recipe, dataset, workers=workers, cpus_per_worker=2.0 / workers, on_step=watch)
    step, wait = stack.rates(ran.history, BATCH, 10)
    table = [_trend(name, watch.rows) for name in _names(watch.rows)]
    reading = size_of(ran.history[-1])
    console.table(
        f"Memory over {arguments.memory_steps:,} steps, {workers} workers, {len(watch.rows)} looks; MB of the largest "
        "process of a kind, without what is shared",
        ["", "first third", "last third", "change", "per 1,000 steps", "largest"],
        [
            (name, *(f"{row[key]:.1f}" for key in ("first", "last", "change", "slope", "largest")))
            for name, row in table
        ],
    )
    console.print(
        f"{1 / step:,.0f} steps/s of {BATCH} images ({1e3 * step:.2f} ms; data-wait {100 * wait:.0f} %, "
        f"{ran.cores_busy:.2f} cores busy); the driver's history: {len(ran.history):,} readings of {reading} bytes, "
        f"{len(ran.history) * reading / 2**20:.2f} MB"
    )
    return {
        "workers": workers,
        "steps_per_second": 1 / step,
        "data_wait": wait,
        "reading_bytes": reading,
        "trend": dict(table),
        "looks": watch.rows,
    }


def _names(rows: list[dict[str, float]]) -> list[str]:
    found = {name for row in rows for name in row} - {"step"}
    order = [
        "driver",
        "dealer",
        "worker",
        "data task",
        "controller",
        "gcs",
        "raylet",
        "rest",
        "all",
        "processes",
    ]
    return [name for name in order if name in found] + ["object store", "objects", "spilled"]


def _trend(name: str, rows: list[dict[str, float]]) -> tuple[str, dict[str, float]]:
    """Medians of the first and the last third of the looks, and the slope of a line through all but the first third."""
    values = [(row["step"], row[name]) for row in rows if name in row]
    third = max(1, len(values) // 3)
    first, last = (statistics.median(v for _, v in part) for part in (values[:third], values[-third:]))
    steps, sizes = np.array(values).T
    settled = slice(third, None)  # until then buffers fill and caches warm up
    slope = float(np.polyfit(steps[settled], sizes[settled], 1)[0]) if len(values) > third + 1 else 0.0
    return name, {
        "first": first,
        "last": last,
        "change": last - first,
        "slope": 1000 * slope,
        "largest": float(sizes.max()),
    }
