"""What `ssl-ray embed` costs: images/s, CPU-seconds per 1,000 images, peak memory, and from these a million images.

Runs the real command on Parquet files of small images (the embedded set, repeated), once for each of --images. What
one more image costs is the difference of two runs by the difference of their sizes: starting Ray and loading torch is
in neither. Memory is the largest resident size of any one process of a kind, and of all without what they share: it
may grow until parts are as large as they get and the source's cache is full, and no further.

    python benchmarks/embed.py [--subject torchvision:resnet18] [--size 32] [--images 10000 40000] [--actors N] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_ray.console import Console
from ssl_ray.data.source import open_dataset

ROW_GROUP = 1000
MILLION = 1_000_000


class Watch(threading.Thread):
    """Of a process and its descendants: CPU-seconds, and peak resident memory of its actors and of itself."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.done = pid, threading.Event()
        self.cpu: dict[int, float] = {}
        self.peak = {"driver": 0, "actor": 0, "tree": 0}

    def run(self) -> None:
        """Looks several times a second, until `done` is set."""
        while not self.done.wait(0.2):
            try:
                root = psutil.Process(self.pid)
                found = [root, *root.children(recursive=True)]
            except psutil.Error:
                return
            tree = 0
            for process in found:
                try:
                    name, times = " ".join(process.cmdline()), process.cpu_times()
                    memory = process.memory_info()
                except psutil.Error:
                    continue
                self.cpu[process.pid] = times.user + times.system
                kind = "driver" if process.pid == self.pid else "actor" if "MapWorker" in name else None
                tree += memory.rss - memory.shared
                if kind:
                    self.peak[kind] = max(self.peak[kind], memory.rss)
            self.peak["tree"] = max(self.peak["tree"], tree)


def write_images(path: Path, count: int) -> None:
    """A Parquet file of `count` encoded images."""
    source = open_dataset("fashion", holdout=0).train
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    labels = source.labels()
    assert labels is not None
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, ROW_GROUP):
            rows = np.arange(start, min(start + ROW_GROUP, count)) % source.info.num_samples
            table = pa.table({"image": source.read(rows), "label": labels[rows]}, schema=schema)
            writer.write_table(table, row_group_size=ROW_GROUP)


def measure(subject: str, size: int, images: int, actors: int | None, folder: Path) -> dict[str, Any]:
    """One run of the command."""
    data = folder / f"{images}.parquet"
    write_images(data, images)
    command = [sys.executable, "-m", "ssl_ray.cli", "embed", subject, f"--data={data}", f"--size={size}"]
    command += [f"--out={folder / str(images)}", f"--storage={folder}", "--json"]
    command += ["--random"] if ":" in subject else []
    command += [f"--actors={actors}"] if actors else []
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    watch = Watch(process.pid)
    watch.start()
    out, _ = process.communicate()
    seconds = time.monotonic() - started
    watch.done.set()
    if process.returncode:
        sys.exit(f"embed ended with status {process.returncode}")
    told = json.loads(out.splitlines()[-1])
    assert sum(told["rows"].values()) == images
    written = sum(file.stat().st_size for file in (folder / str(images)).iterdir())
    return {
        "images": images,
        "seconds": seconds,
        "cpu_seconds": sum(watch.cpu.values()),
        "driver_mb": watch.peak["driver"] / 2**20,
        "actor_mb": watch.peak["actor"] / 2**20,
        "tree_mb": watch.peak["tree"] / 2**20,
        "written_mb": written / 2**20,
    }


def main() -> None:
    """Measures each number of images, and extrapolates from the smallest and the largest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", default="torchvision:resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 40_000])
    parser.add_argument("--actors", type=int)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            measure(arguments.subject, arguments.size, images, arguments.actors, Path(folder))
            for images in sorted(arguments.images)
        ]
    Console("quiet" if arguments.json else "normal").table(
        f"ssl-ray embed {arguments.subject}, {arguments.size} px, {os.cpu_count()} CPUs",
        ("images", "s", "CPU-s", "driver MB", "actor MB", "all MB", "written MB"),
        [(f"{run['images']:,}", *(round(run[key], 1) for key in list(run)[1:])) for run in runs],
    )
    result: dict[str, Any] = {"subject": arguments.subject, "size": arguments.size, "runs": runs}
    if len(runs) > 1:
        first, last = runs[0], runs[-1]
        more = last["images"] - first["images"]
        each, cpu_each = ((last[key] - first[key]) / more for key in ("seconds", "cpu_seconds"))
        result |= {
            "images_per_second": 1 / each,
            "cpu_seconds_per_1000": 1000 * cpu_each,
            "million_hours": (first["seconds"] + each * (MILLION - first["images"])) / 3600,
            "million_gb": last["written_mb"] / last["images"] * MILLION / 1024,
        }
        if not arguments.json:
            print(
                f"each further image: {result['images_per_second']:,.0f} images/s, "
                f"{result['cpu_seconds_per_1000']:.2f} CPU-s per 1,000; a million: "
                f"{result['million_hours']:.2f} h, {result['million_gb']:.1f} GB of features"
            )
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
