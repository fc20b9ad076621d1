"""Nodes for a training that is to end in a stated time, from what a core of this machine was measured to do."""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from data import load, sample_photos

from scaling_parts import stack
from ssl_ray.console import Console
from ssl_ray.data.pipeline import make_batch
from ssl_ray.data.source import open_dataset
from ssl_ray.data.views import moco_v2_views
from ssl_ray.spec import Spec

SIZE = 224
BATCH = 32
CPUS = 3  # logical: one for the worker, two for data tasks
FORMULAS = """\
images/s        R = images x epochs / (hours x 3600)
GPUs            ceil(R / images/s of a GPU)
GPU nodes       ceil(GPUs / GPUs of a node)
cores for data  ceil(R x CPU-seconds of an image), all of them measured with the whole stack
CPU nodes       ceil((cores for data - GPU nodes x (cores of a node - GPUs of a node)) / cores of a node), at least 0
into a node     GPUs of a node x images/s of a GPU x bytes of an image's views
from storage    R x bytes of an encoded image"""


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("nodes")
    group.add_argument("--folder", type=Path, help="photographs; default: scikit-learn's samples, cropped")
    group.add_argument("--gpu-images-per-second", type=float, default=1000.0)
    group.add_argument("--gpus-per-node", type=int, default=8)
    group.add_argument("--cores-per-node", type=int, default=128)
    group.add_argument("--images", type=int, nargs="+", default=[1_281_167, 1_000_000_000])
    group.add_argument("--epochs", type=int, nargs="+", default=[200, 1], help="one for each of --images")
    group.add_argument(
        "--hours", type=float, nargs="+", default=[24.0, 24.0], help="one for each of --images"
    )
    group.add_argument("--nodes-steps", type=int, default=80)


def measure(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measures a core, then prints the formulas and what they give."""
    if not len(arguments.images) == len(arguments.epochs) == len(arguments.hours):
        raise SystemExit("--images, --epochs and --hours: give as many of each")
    blobs = load(arguments.folder, 48)
    result: dict[str, Any] = {
        "image_bytes": sum(map(len, blobs)) / len(blobs),
        "make_batch_images_per_core": _images_per_core(blobs),
    }
    with tempfile.TemporaryDirectory() as photos:
        if arguments.folder is None:
            sample_photos(Path(photos))
        result |= _stack(str(arguments.folder or photos), arguments.nodes_steps)
    plans = [
        _nodes(arguments, result, *target)
        for target in zip(arguments.images, arguments.epochs, arguments.hours, strict=True)
    ]
    console.print(
        f"{len(blobs)} images of {result['image_bytes'] / 1024:.0f} KB, MoCo v2, {SIZE} px, a core of this machine: "
        f"make_batch alone {result['make_batch_images_per_core']:,.0f} images/s "
        f"({1e3 / result['make_batch_images_per_core']:.2f} CPU ms an image), the whole stack "
        f"{1 / result['cpu_seconds_per_image']:,.0f} ({1e3 * result['cpu_seconds_per_image']:.2f}; "
        f"{result['images_per_second']:,.0f} images/s with {result['cores_busy']:.2f} cores busy)"
    )
    console.print(FORMULAS)
    console.table(
        f"Nodes with {arguments.gpus_per_node} GPUs of {arguments.gpu_images_per_second:,.0f} images/s and "
        f"{arguments.cores_per_node} cores",
        [
            *("images", "epochs", "hours", "images/s", "GPUs", "GPU nodes", "cores for data", "CPU nodes"),
            *("GB/s into a node", "GB/s from storage", "TB stored"),
        ],
        [
            (
                *(f"{plan[name]:,}" for name in ("images", "epochs")),
                f"{plan['hours']:g}",
                f"{plan['images_per_second']:,.0f}",
                *(f"{plan[name]:,}" for name in ("gpus", "gpu_nodes", "data_cores", "cpu_nodes")),
                *(
                    f"{plan[name]:.2f}"
                    for name in ("node_gb_per_second", "storage_gb_per_second", "stored_tb")
                ),
            )
            for plan in plans
        ],
    )
    return result | {"nodes": plans}


def _images_per_core(blobs: list[bytes], seconds: float = 10.0) -> float:
    """As benchmarks/data.py measures it: images per second of process time, from encoded bytes in memory."""
    pipeline, images = moco_v2_views(SIZE), 0
    make_batch(pipeline, blobs, np.arange(len(blobs)), 0, 0)
    started = time.process_time()
    while time.process_time() - started < seconds:
        make_batch(pipeline, blobs, np.arange(len(blobs)), 0, images)
        images += len(blobs)
    return images / (time.process_time() - started)


def _stack(folder: str, steps: int) -> dict[str, float]:
    """CPU-seconds of an image in all processes of a run whose worker takes what it gets."""
    dataset = open_dataset(folder, holdout=0)
    batch = min(BATCH, dataset.train.info.num_samples)
    views = Spec(moco_v2_views, size=SIZE)
    recipe = stack.sleeper(dataset, seconds=0.0, batch=batch, steps=steps, log_steps=2, views=views)
    with stack.ray_here(CPUS):
        ran = stack.train(recipe, dataset, workers=1, cpus_per_worker=1.0, ahead=False)
    step, _ = stack.rates(ran.history, batch, 4)
    columns = recipe.views.build().columns.values()
    return {
        "images_per_second": batch / step,
        "cpu_seconds_per_image": ran.cpu_per_image,
        "cores_busy": ran.cores_busy,
        "view_bytes": float(sum(np.prod(c.shape) * np.dtype(c.dtype).itemsize for c in columns)),
    }


def _nodes(
    arguments: argparse.Namespace, measured: dict[str, Any], images: int, epochs: int, hours: float
) -> dict[str, Any]:
    """See FORMULAS."""
    rate = images * epochs / (3600 * hours)
    gpus = math.ceil(rate / arguments.gpu_images_per_second)
    gpu_nodes = math.ceil(gpus / arguments.gpus_per_node)
    data_cores = math.ceil(rate * measured["cpu_seconds_per_image"])
    spare = gpu_nodes * (arguments.cores_per_node - arguments.gpus_per_node)
    return {
        "images": images,
        "epochs": epochs,
        "hours": hours,
        "images_per_second": rate,
        "gpus": gpus,
        "gpu_nodes": gpu_nodes,
        "data_cores": data_cores,
        "cpu_nodes": math.ceil(max(0, data_cores - spare) / arguments.cores_per_node),
        "node_gb_per_second": arguments.gpus_per_node
        * arguments.gpu_images_per_second
        * measured["view_bytes"]
        / 1e9,
        "storage_gb_per_second": rate * measured["image_bytes"] / 1e9,
        "stored_tb": images * measured["image_bytes"] / 1e12,
    }
