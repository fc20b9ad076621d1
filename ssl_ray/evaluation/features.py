"""Features of all images of sources, computed once by a pool of actors, and kept in a file.

Ray Data runs the pool: a row of the plan is a range of images, and an actor that holds the network reads, decodes (in
threads, a batch ahead) and embeds it. An actor takes a GPU, or a share of one, where the cluster has any.
"""

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor, nn

from ssl_ray.data.source import Source
from ssl_ray.data.sources.base import digest
from ssl_ray.data.stream import quiet_ray_data
from ssl_ray.errors import UserError
from ssl_ray.evaluation.images import crop_fraction, decoded, in_batches, plain_pipeline

# Images of one task: its features (8 MB at 2,048 dimensions) cross Ray's object store as one block.
TASK_IMAGES = 1024
# A CPU gains nothing from larger batches, and the maps of 64 images of 224 px are 200 MB in a ResNet's first layer.
GPU_BATCH, CPU_BATCH = 256, 64
# Each actor without a GPU costs 2 to 3 s and some 400 MB to start: on a machine of many cores they have more threads.
_ACTORS_PER_NODE = 8
_MOST_CPUS = 16.0  # of one actor: past that, Python's lock and not the cores limits its decoding threads
_FORMAT = 1  # of cached features; another number for another meaning of the same key

Broken = tuple[int, str, str]
"""(index, path, reason) of an image that cannot be decoded."""


@dataclass(frozen=True)
class Extraction:
    """How features of a source are made: the plain view of `size` pixels a side, then the encoder, in float32.

    encoder: uint8 images (B, 3, H, W) in, features (B, D) out; on the CPU, in evaluation mode. weights: its digest.
    batch_size: images in one forward pass; None for what the device is good at.
    """

    encoder: nn.Module = field(repr=False)
    weights: str
    source: Source
    size: int
    batch_size: int | None = None

    @property
    def key(self) -> str:
        """The same for the same features: of weights, images and what is done to them."""
        content = self.source.info.digest
        return digest(_FORMAT, self.weights, content, self.size, crop_fraction(self.source, self.size))

    def embed(
        self, start: int, stop: int, device: torch.device, threads: int
    ) -> tuple[Tensor, Tensor, list[Broken]]:
        """Features (n, D), index (n,) of images start..stop-1, and the broken ones, which are left out of both.

        The encoder must be on `device` already.
        """
        batch_size = self.batch_size or (GPU_BATCH if device.type == "cuda" else CPU_BATCH)
        chunks = in_batches(np.arange(start, stop), batch_size)
        reasons: dict[str, str] = {}
        features, indices = [], []
        pipeline = plain_pipeline(self.source, self.size)
        with torch.inference_mode():
            for (view,), index in decoded(self.source, chunks, pipeline, ["view_0"], reasons, threads):
                if len(view):
                    features.append(self.encoder(view.to(device, non_blocking=True)).float().cpu())
                    indices.append(index)
        index = torch.cat(indices) if indices else torch.zeros(0, dtype=torch.int64)
        lost = np.setdiff1d(np.arange(start, stop), index.numpy()).tolist() if reasons else []
        paths = [self.source.path(i) for i in lost]
        broken = [(i, path, reasons[path]) for i, path in zip(lost, paths, strict=True)]
        return torch.cat(features) if features else torch.zeros(0, 0), index, broken


@dataclass(frozen=True)
class Features:
    """features (n, D) float32 of the images `index` (n,) int64, ascending; broken ones are in neither."""

    features: Tensor
    index: Tensor
    broken: Sequence[Broken] = ()


@dataclass(frozen=True)
class Pool:
    """Actors and what each takes. Torch and the decoder get a thread per CPU."""

    actors: int
    cpus: float
    gpus: float


class Job(Protocol):
    """What a pool does to rows of a plan; pickled once, and held by each actor."""

    def start(self, device: torch.device, threads: int) -> None:
        """Called once in each actor."""

    def do(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One row of the plan in, one row of results out."""


def fit_pool(actors: int | None, gpus_per_actor: float | None, tasks: int) -> Pool:
    """What the joined cluster gives to `tasks` tasks. Raises UserError for what it does not have.

    By default an actor per GPU, each with its share of the CPUs; without GPUs up to eight actors share a node.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    per_actor = (1.0 if gpus else 0.0) if gpus_per_actor is None else gpus_per_actor
    if per_actor > gpus:
        raise UserError(
            f"gpus_per_actor: {per_actor:g} GPUs each, the cluster has {gpus:g}; use --gpus-per-actor 0 or a larger "
            "cluster (--address)"
        )
    if per_actor:
        most = int(sum(int(node.get("GPU", 0.0) / per_actor + 1e-9) for node in nodes))
    else:
        most = int(sum(min(_ACTORS_PER_NODE, node.get("CPU", 0.0)) for node in nodes))
    if actors is not None and actors > (possible := int(most if per_actor else cpus)):
        what = (
            f"{gpus:g} GPUs, {per_actor:g} for each"
            if per_actor
            else f"{cpus:g} CPUs, one for each at the least"
        )
        raise UserError(f"actors: {actors} need more than the cluster has ({what}); use --actors {possible}")
    count = max(1, min(actors or most, tasks))
    share = min(cpus / count, _MOST_CPUS) if len(nodes) == 1 else min(cpus / most, _MOST_CPUS)
    return Pool(count, float(max(1, int(share))), per_actor)


class _Actor:
    def __init__(self, cpus: float, gpus: float) -> None:
        self.device, self.threads = torch.device("cuda" if gpus else "cpu"), int(cpus)
        torch.set_num_threads(self.threads)
        self.job: Job | None = None

    def __call__(self, rows: pa.Table, job: "list[ray.ObjectRef[Job]]") -> pa.Table:
        if self.job is None:
            self.job = ray.get(job[0])
            self.job.start(self.device, self.threads)
        return pa.Table.from_pylist([self.job.do(row) for row in rows.to_pylist()])


def run_job(job: Job, rows: Sequence[dict[str, Any]], pool: Pool) -> Iterator[dict[str, Any]]:
    """Results of a job for the rows of a plan, in their order. Raises what `do` raised."""
    quiet_ray_data()
    ref = ray.put(job)
    dataset = ray.data.from_blocks([pa.Table.from_pylist([row]) for row in rows]).map_batches(
        _Actor,
        fn_constructor_args=(pool.cpus, pool.gpus),
        # Not to the constructor: Ray complains of references there. In a list it stays one.
        fn_args=([ref],),
        compute=ray.data.ActorPoolStrategy(size=pool.actors),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from table.to_pylist()
    except ray.exceptions.RayError as error:
        raise getattr(error, "cause", None) or error from error


class _Extract:
    """The job of `extract`: {"which", "start", "stop"} in, {"features", "index", "broken"} out, as bytes and JSON."""

    def __init__(self, extractions: Sequence[Extraction]) -> None:
        self.extractions = list(extractions)

    def start(self, device: torch.device, threads: int) -> None:
        self.device, self.threads = device, threads
        for extraction in self.extractions:
            extraction.encoder.to(device)

    def do(self, row: Mapping[str, Any]) -> dict[str, Any]:
        extraction = self.extractions[row["which"]]
        features, index, broken = extraction.embed(row["start"], row["stop"], self.device, self.threads)
        return {
            "features": features.numpy().tobytes(),
            "index": index.numpy().tobytes(),
            "broken": json.dumps(broken),
        }


def tasks(num_samples: int, images: int = TASK_IMAGES) -> list[dict[str, int]]:
    """The plan: ranges of `images` images."""
    return [{"start": s, "stop": min(s + images, num_samples)} for s in range(0, num_samples, images)]


def extract(
    extractions: Sequence[Extraction],
    *,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Features]:
    """Features of all images of each source, by one pool of the joined cluster.

    on_progress: called with (images done, in all). Raises UserError when no image of a source can be decoded.
    """
    sizes = [extraction.source.info.num_samples for extraction in extractions]
    rows = [row | {"which": which} for which, size in enumerate(sizes) for row in tasks(size)]
    features: list[list[np.ndarray]] = [[] for _ in sizes]
    indices: list[list[np.ndarray]] = [[] for _ in sizes]
    broken: list[list[Broken]] = [[] for _ in sizes]
    pool = fit_pool(actors, gpus_per_actor, len(rows))
    done = 0
    for row, part in zip(rows, run_job(_Extract(extractions), rows, pool), strict=True):
        which = row["which"]
        index = np.frombuffer(part["index"], np.int64)
        if len(index):
            indices[which].append(index)
            features[which].append(np.frombuffer(part["features"], np.float32).reshape(len(index), -1))
        broken[which] += [(i, path, reason) for i, path, reason in json.loads(part["broken"])]
        done += row["stop"] - row["start"]
        if on_progress:
            on_progress(done, sum(sizes))
    for which, size in enumerate(sizes):
        if not indices[which]:
            _, path, reason = broken[which][0]
            raise UserError(f"data: none of {size} images can be decoded; the first is {path}: {reason}")
    return [
        Features(torch.from_numpy(np.concatenate(made)), torch.from_numpy(np.concatenate(index)), lost)
        for made, index, lost in zip(features, indices, broken, strict=True)
    ]


def read_cache(path: Path) -> Features | None:
    """What `write_cache` wrote, or None: not there, cut short, or changed since."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get("ssl_ray", "{}"))
            features, index = file.get_tensor("features"), file.get_tensor("index")
    except (OSError, SafetensorError, ValueError):
        return None
    if described.get("content") != _content(features, index):
        return None
    return Features(features, index, [(i, p, reason) for i, p, reason in described["broken"]])


def write_cache(path: Path, found: Features) -> None:
    """Keeps features in a file that appears under its name only when it is whole."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    described = {"content": _content(found.features, found.index), "broken": list(found.broken)}
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file(
            {"features": found.features, "index": found.index}, temporary, {"ssl_ray": json.dumps(described)}
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _content(features: Tensor, index: Tensor) -> str:
    return digest(_bytes(features), _bytes(index))


def weights_digest(encoder: nn.Module) -> str:
    """A hash of all parameters and buffers, by name; buffers that are not saved (mean, std) among them."""
    tensors = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    parts: list[object] = [type(encoder).__qualname__]
    for name, value in sorted(tensors.items()):
        parts += [name, tuple(value.shape), str(value.dtype), _bytes(value)]
    return digest(*parts)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data
