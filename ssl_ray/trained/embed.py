"""Features of any number of images, to Parquet: part by part, in parallel, continued where it was stopped.

An actor makes a whole part, reads, embeds and writes it, and tells the driver only how many rows it has. So nothing
large passes through the driver or Ray's object store, and memory is bounded whatever the number of images: an actor
holds the features of one part, a few times over while it writes them, two batches of images, and what the source keeps
of what it read last (256 MiB of Parquet row groups).
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ssl_ray import __version__
from ssl_ray.console import Console
from ssl_ray.data.source import Dataset
from ssl_ray.data.sources.base import Source, digest
from ssl_ray.data.sources.location import Location
from ssl_ray.errors import StoreError, UserError, nearest
from ssl_ray.evaluation.features import GPU_BATCH, Broken, Extraction, fit_pool, run_job, tasks
from ssl_ray.evaluation.images import crop_fraction
from ssl_ray.evaluation.unit import count_not_finite
from ssl_ray.trained.case import Means, described
from ssl_ray.trained.evaluate import dataset_of
from ssl_ray.trained.subject import Subject, load_subject
from ssl_ray.training import cluster, head, reach
from ssl_ray.training.notices import Notices
from ssl_ray.training.places import lasting
from ssl_ray.training.pretrain import no_credentials

METADATA = "_metadata.json"
FORMAT = "ssl-ray-features-1"
DTYPES = {"float32": pa.float32(), "float16": pa.float16()}
SPLITS = ("all", "train", "val")
# Features of a part in bytes, and the least number of parts where there are images enough: each actor should get some.
PART_BYTES = 32 * 2**20
_PARTS = 32
_KEY = b"ssl-ray"


@dataclass(frozen=True)
class Request:
    """What the user asked for. Fields are the options of `ssl-ray embed`."""

    subject: str
    out: str
    data: str | None = None
    columns: dict[str, str | None] = field(default_factory=dict)
    split: str = "all"
    dtype: str = "float32"
    storage: str = "runs"
    random: bool = False
    size: int | None = None
    seed: int = 0
    means: Means = field(default_factory=Means)
    as_json: bool = False


def embed(request: Request, console: Console) -> dict[str, Any]:
    """Writes the features and says how many. Returns what `--json` prints. Raises UserError."""
    no_credentials("out", request.out)
    out = Location.of(request.out)
    with Notices(console.warn), out.alone():
        return _embed(request, out, console)


def _embed(request: Request, out: Location, console: Console) -> dict[str, Any]:
    started = time.monotonic()
    for option, value, allowed in (("dtype", request.dtype, DTYPES), ("split", request.split, SPLITS)):
        if value not in allowed:
            raise UserError(f"{option}: there is no {value!r}; {nearest(value, allowed)}")
    subject = load_subject(request.subject, request.storage, random=request.random, seed=request.seed)
    # Nothing is held out: these are all the images there are.
    data, dataset = dataset_of(subject, request.data, request.columns, 0.0)
    dataset.tell(console.print, console.warn, data)
    sources = _sources(request, data, dataset)
    size = request.size or subject.image_size
    width = subject.feature_width(size)
    identity = _identity(subject, sources, size, width, request.dtype)
    kept = _prepare(out, identity)
    rows_of = {
        split: _part_rows(source, width, request.means.batch_size) for split, source in sources.items()
    }
    if kept is not None:
        rows_of = kept["part_rows"]
    metadata = {
        "format": FORMAT,
        "complete": False,
        **described(subject),
        "data": lasting(data),
        "identity": identity,
        "part_rows": rows_of,
        "class_names": {split: source.info.class_names for split, source in sources.items()},
        "ssl_ray": __version__,
    }
    if kept is None:
        _write_metadata(out, metadata)
    plan: list[dict[str, Any]] = [
        {"split": split, "part": part, **row}
        for split, source in sources.items()
        for part, row in enumerate(tasks(source.info.num_samples, rows_of[split]))
    ]
    done = _finished(out, plan, identity, console)
    total = sum(source.info.num_samples for source in sources.values())
    before = sum(row["stop"] - row["start"] for row in plan if _name(row) in done)
    console.print(f"{subject.source}: {width} features at {size} x {size} px")
    console.print(f"{total:,} images, {before:,} of them done before")
    left = [row for row in plan if _name(row) not in done]
    if left:
        extractions = {
            split: Extraction(subject.encoder, identity["weights"], source, size, request.means.batch_size)
            for split, source in sources.items()
        }
        _run(
            request,
            console,
            subject,
            _Write(extractions, out, request.dtype, width, identity),
            left,
            done,
            total,
        )
    broken: list[Broken] = [tuple(b) for row in plan for b in done[_name(row)]["broken"]]
    seconds = time.monotonic() - started
    counts = {
        split: sum(done[_name(row)]["rows"] for row in plan if row["split"] == split) for split in sources
    }
    # A part of an earlier version does not say.
    lost = sum(done[_name(row)].get("not_finite", 0) for row in plan)
    metadata |= {"complete": True, "rows": counts, "parts": len(plan), "broken": broken, "not_finite": lost}
    _write_metadata(out, metadata)
    summary = metadata | {
        "out": str(out),
        "done_before": before,
        "seconds": round(seconds, 1),
        "images_per_second": round((total - before) / seconds, 1),
    }
    _say(request, console, summary, broken)
    return summary


def _sources(request: Request, data: str, dataset: Dataset) -> dict[str, Source]:
    sources = {"train": dataset.train} | ({} if dataset.val is None else {"val": dataset.val})
    if request.split == "all":
        return sources
    if request.split not in sources:
        raise UserError(f"split: {data} has no {request.split} part; leave --split out for all its images")
    return {request.split: sources[request.split]}


def _identity(
    subject: Subject, sources: dict[str, Source], size: int, width: int, dtype: str
) -> dict[str, Any]:
    """What decides the content of the parts."""
    return {
        "weights": subject.weights,
        "data": {split: source.info.digest for split, source in sources.items()},
        "image_size": size,
        "crop_fraction": {split: crop_fraction(source, size) for split, source in sources.items()},
        "features": width,
        "dtype": dtype,
    }


def _part_rows(source: Source, width: int, batch_size: int | None) -> int:
    """Images of a part: whole batches, as many as `PART_BYTES` hold."""
    most = min(PART_BYTES // (4 * width), -(-source.info.num_samples // _PARTS))
    batch = batch_size or GPU_BATCH
    return max(1, most // batch) * batch


def _prepare(out: Location, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The metadata of an earlier call with the same identity; None in an empty folder. Raises UserError otherwise."""
    if not out.exists():
        return None
    if out.is_file():
        raise UserError(f"out: {str(out)!r} is a file; give a folder")
    found = [path for path, _ in out.list(recursive=False)]
    if METADATA not in found:
        if others := [path for path in found if not path.endswith(".tmp")]:
            raise UserError(f"out: {str(out)!r} holds other files ({others[0]}); give an empty folder")
        return None
    try:
        kept: dict[str, Any] = json.loads(out.read_bytes(METADATA))
        if kept["format"] != FORMAT:
            raise ValueError(f"format {kept['format']!r}, expected {FORMAT!r}")
        theirs = kept["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"out: {str(out / METADATA)!r} was not written by `ssl-ray embed` ({error}); give an empty folder"
        ) from error
    if theirs != identity:
        differs = next(name for name in identity if theirs.get(name) != identity[name])
        what = {
            "weights": f"another network ({kept.get('source')})",
            "data": f"other images ({kept.get('data')})",
            "dtype": f"another --dtype ({theirs.get('dtype')})",
        }.get(differs, f"another {differs.replace('_', ' ')} ({theirs.get(differs)})")
        raise UserError(f"out: {str(out)!r} holds features of {what}; give another --out")
    if out.is_local:
        for path in found:
            if path.endswith(".tmp"):  # of a call that was killed
                out.filesystem.delete_file((out / path).full_path)
    return kept


def _finished(
    out: Location, plan: list[dict[str, Any]], identity: dict[str, Any], console: Console
) -> dict[str, dict[str, Any]]:
    """What is known of the parts that are whole: name -> {"rows", "broken", "not_finite"}."""
    there = {path for path, _ in out.list(recursive=False)} & {_name(row) for row in plan}

    def read(name: str) -> tuple[str, dict[str, Any] | None]:
        try:
            with (out / name).open() as stream:
                stored = json.loads((pq.read_schema(stream).metadata or {}).get(_KEY, b"{}"))
        except StoreError:
            raise  # the store's trouble says nothing of the part
        except (OSError, pa.ArrowInvalid):
            return name, None
        return name, stored if stored.get("identity") == digest(identity) else None

    found = {}
    for name, stored in out.map_reads(read, sorted(there)):
        if stored is None:
            console.warn(f"{out / name} is not whole; it is made again")
        else:
            found[name] = stored
    return found


def _name(row: Mapping[str, Any]) -> str:
    """File of a part. Its beginning says the split, as `--data` understands it."""
    return f"{row['split']}-{row['part']:05d}.parquet"


def _write_metadata(out: Location, metadata: dict[str, Any]) -> None:
    (out / METADATA).write_bytes(json.dumps(metadata, indent=1, ensure_ascii=False).encode())


class _Write:
    """The job: row {"split", "part", "start", "stop", "labels"} in, a file written, {"rows", "broken", ...} out."""

    def __init__(
        self,
        extractions: dict[str, Extraction],
        out: Location,
        dtype: str,
        width: int,
        identity: dict[str, Any],
    ) -> None:
        self.extractions, self.out, self.dtype, self.width = extractions, out, dtype, width
        self.identity = digest(identity)

    def start(self, device: torch.device, threads: int) -> None:
        self.device, self.threads = device, threads
        for extraction in self.extractions.values():
            extraction.encoder.to(device)

    def do(self, row: Mapping[str, Any]) -> dict[str, Any]:
        extraction = self.extractions[row["split"]]
        features, index, broken = extraction.embed(row["start"], row["stop"], self.device, self.threads)
        with np.errstate(over="ignore"):  # counted below
            converted = features.numpy().astype(self.dtype, copy=False)
        values = converted.reshape(-1)
        columns: dict[str, Any] = {
            "index": pa.array(index.numpy(), pa.int64()),
            "path": pa.array([extraction.source.path(i) for i in index.tolist()], pa.string()),
        }
        if row["labels"] is not None:
            labels = np.asarray(row["labels"])[index.numpy() - row["start"]]
            columns["label"] = pa.array(labels, pa.int64())
        columns["feature"] = pa.FixedSizeListArray.from_arrays(
            pa.array(values, DTYPES[self.dtype]), self.width
        )
        lost, _ = count_not_finite(torch.from_numpy(converted))
        stored = {"identity": self.identity, "rows": len(index), "broken": broken, "not_finite": lost}
        table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(stored)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, use_dictionary=False)  # no two features are alike
        (self.out / _name(row)).write_bytes(sink.getvalue())
        return {"rows": stored["rows"], "broken": json.dumps(broken), "not_finite": lost}


def _run(
    request: Request,
    console: Console,
    subject: Subject,
    job: _Write,
    left: list[dict[str, Any]],
    done: dict[str, dict[str, Any]],
    total: int,
) -> None:
    """Makes the parts that are left, and adds them to `done`."""
    means = request.means
    labels = {split: extraction.source.labels() for split, extraction in job.extractions.items()}
    rows = []
    for row in left:
        all_labels = labels[row["split"]]
        part = None if all_labels is None else all_labels[row["start"] : row["stop"]].tolist()
        rows.append({**row, "labels": part})
    record = subject.folder.record() if subject.folder else {}
    python_path = record.get("python_path", ())
    with cluster.joined(means.address, verbose=means.verbose, python_path=python_path, actor_pool=True):
        pool = fit_pool(means.actors, means.gpus_per_actor, len(left))
        sources = [extraction.source for extraction in job.extractions.values()]
        reach.require(console.warn, images=sources, out=request.out)
        so_far = total - sum(row["stop"] - row["start"] for row in left)
        hint = "finished parts are kept: the same command goes on"
        with head.watched(hint), console.task("embedding") as on_progress:
            for row, result in zip(left, run_job(job, rows, pool), strict=True):
                done[_name(row)] = result | {"broken": json.loads(result["broken"])}
                so_far += row["stop"] - row["start"]
                on_progress(so_far, total)


def _say(request: Request, console: Console, summary: dict[str, Any], broken: list[Broken]) -> None:
    if broken:
        shown = "; ".join(f"{path} ({reason})" for _, path, reason in broken[:5])
        more = f"; and {len(broken) - 5} more, all in {METADATA}" if len(broken) > 5 else ""
        console.warn(f"{len(broken)} images cannot be decoded and are left out: {shown}{more}")
    if summary["not_finite"]:
        half = " in float16, which ends at 65504 (--dtype float32 reaches further)"
        console.warn(
            f"{summary['not_finite']} of {sum(summary['rows'].values())} features are not finite"
            f"{half if request.dtype == 'float16' else ''}: nothing can be told from them; a network that has diverged "
            "gives such, an earlier checkpoint may not"
        )
    if request.as_json:
        console.json_line(summary)
        return
    rows = ", ".join(f"{count:,} of {split}" for split, count in summary["rows"].items())
    console.print(
        f"wrote {rows} in {summary['parts']} parts to {summary['out']}: {summary['images_per_second']:,.0f} images/s"
    )
    console.print(f"read it: pyarrow.parquet.read_table({summary['out']!r})")
