"""What an opened source holds: in the driver, pickled, and in every data process that reads from it."""

import gc
import multiprocessing
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_ray.console import Console
from ssl_ray.data.prepare import prepare
from ssl_ray.data.source import Source, open_dataset

BILLION = 1_000_000_000
CLASSES = 10
ROW_GROUP = 1000
NOISE_MB = 5.0  # a growth below this says nothing about a billion
LINKS = 20_000  # names of one file: file systems allow some ten thousand
KEYS = ("open_s", "open_mb", "pickled_mb", "process_mb", "labels_mb")


def _image() -> bytes:
    return open_dataset("digits", holdout=0).train.read(np.array([0]))[0]


def write_folder(path: Path, images: int) -> None:
    """Class folders of so many files; many names for few files, since only names count."""
    for label in range(CLASSES):
        (path / f"class_{label}").mkdir(parents=True)
    data, file = _image(), path
    for i in range(images):
        name = path / f"class_{i % CLASSES}" / f"image_{i:010d}.png"
        if i % LINKS == 0:
            name.write_bytes(data)
            file = name
        else:
            os.link(file, name)


def write_parquet(path: Path, images: int) -> None:
    """One file, row groups of a thousand."""
    path.mkdir()
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    data = _image()
    with pq.ParquetWriter(path / "images.parquet", schema) as writer:
        for start in range(0, images, ROW_GROUP):
            rows = min(ROW_GROUP, images - start)
            labels = (start + np.arange(rows)) % CLASSES
            writer.write_table(pa.table({"image": [data] * rows, "label": labels}, schema=schema))


def write_shards(path: Path, images: int) -> None:
    """The same as `ssl-ray data prepare` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        write_parquet(Path(folder) / "in", images)
        prepare(open_dataset(f"{folder}/in", holdout=0).train, path)


KINDS: dict[str, Callable[[Path, int], None]] = {
    "folder": write_folder,
    "Parquet": write_parquet,
    "shards": write_shards,
}


def _resident(own: bool = False) -> float:
    """MB of this process; own: without what is shared or mapped from files, which the system takes back at need."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    memory = psutil.Process().memory_info()
    return float((memory.rss - (memory.shared if own else 0)) / 2**20)


def _peak() -> float:
    """The most that it was since `_forget_peak`, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _open(path: str) -> tuple[dict[str, float], bytes]:
    """In a process of its own, as the driver: seconds, peak growth, and the pickled source."""
    open_dataset("fashion")  # whatever opening imports
    before = _resident()
    _forget_peak()
    started = time.perf_counter()
    source = open_dataset(path, holdout=0).train
    seconds = time.perf_counter() - started
    peak = _peak() - before
    blob = pickle.dumps(source)
    return {"open_s": seconds, "open_mb": peak, "pickled_mb": len(blob) / 2**20}, blob


def _use(blob: bytes) -> dict[str, float]:
    """In a process of its own, as a data task: growth for reading images and naming one, and then for the labels."""
    fashion = open_dataset("fashion").train
    fashion.read(np.arange(64))
    before = _resident(own=True)
    source: Source = pickle.loads(blob)
    total = source.info.num_samples
    source.read(np.linspace(0, total - 1, 64).astype(np.int64))
    source.path(total // 2)
    after = _resident(own=True)
    whole = _resident()
    _forget_peak()
    source.labels()
    return {"process_mb": after - before, "labels_mb": _peak() - whole}


def _in_own_process(function: Callable[..., Any], argument: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (argument,))


def measure(sizes: list[int], console: Console) -> dict[str, Any]:
    """Each kind with each number of images, and the billion that follows from both."""
    rows = []
    for kind, write in KINDS.items():
        for images in sizes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "data"
                write(path, images)
                opened, blob = _in_own_process(_open, str(path))
                rows.append({"kind": kind, "images": images, **opened, **_in_own_process(_use, blob)})
                shutil.rmtree(path)
        small, large = rows[-2:]
        rows.append({"kind": kind, "images": BILLION, **_billion(small, large)})
    console.table(
        f"Opening a source; growth of resident memory; {BILLION:,}: extrapolated, flat where less than {NOISE_MB:g} MB "
        "lie between the two",
        ["source", "images", "open s", "open, peak MB", "pickled MB", "data process MB", "labels(), peak MB"],
        [
            (
                row["kind"],
                f"{row['images']:,}",
                *("flat" if row[key] is None else f"{row[key]:,.1f}" for key in KEYS),
            )
            for row in rows
        ],
    )
    return {"opening": rows}


def _billion(small: dict[str, Any], large: dict[str, Any]) -> dict[str, float | None]:
    """The line through both sizes, at a billion; None for what did not grow."""
    more = (BILLION - large["images"]) / (large["images"] - small["images"])
    grown = {key: large[key] - small[key] for key in KEYS}
    return {
        key: large[key] + more * grown[key]
        if grown[key] > (0.1 * large[key] if key == "open_s" else NOISE_MB)
        else None
        for key in KEYS
    }
