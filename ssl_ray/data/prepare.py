"""Packs a source into Arrow IPC shards: few large files, random access, a stable index."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from os import PathLike, cpu_count
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssl_ray.data.packer import Broken, Packer
from ssl_ray.data.plan import Int64
from ssl_ray.data.sources.base import Dataset, Source, digest, median_size, sample_indices
from ssl_ray.data.sources.location import Location
from ssl_ray.data.sources.shards import INDEX, INDEX_SCHEMA, MANIFEST, SCHEMA, Manifest, shard_name
from ssl_ray.errors import UserError

SHARD_BYTES = 256 * 2**20
_METADATA = b"ssl-ray"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prepared:
    """What `prepare` left at `location`. shards_written: by this call, the rest was there before.

    broken: (index, path, reason) of images that could not be resized; their bytes were kept as they are. left_out: what
    of images that were resized is lost, in words -> paths; empty without `resize`.
    """

    location: str
    num_samples: int
    num_shards: int
    shards_written: int
    broken: tuple[Broken, ...] = ()
    left_out: Mapping[str, list[str]] = field(default_factory=dict)


def prepare(
    source: Source,
    out_uri: "str | PathLike[str] | Location",
    *,
    shard_bytes: int = SHARD_BYTES,
    resize: int | None = None,
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> Prepared:
    """Writes all images of `source` into shards below `out_uri`; continues where an earlier call was stopped.

    shard_bytes: size at which a new shard begins. resize: shorter side in pixels; larger images are scaled down
    and stored as JPEG of quality 95, all others keep their bytes. workers: threads, the CPUs unless given.
    on_progress: called with (images done, images in all). A shard appears under its name once it is whole.
    Raises UserError when `out_uri` holds something else, or another process is writing there.
    """
    for name, value in (("shard_bytes", shard_bytes), ("resize", resize), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{name}: got {value}, must be at least 1")
    out = Location.of(out_uri)
    with out.alone():
        return _prepare(source, out, shard_bytes, resize, workers, on_progress)


def _prepare(
    source: Source,
    out: Location,
    shard_bytes: int,
    resize: int | None,
    workers: int | None,
    on_progress: Progress | None,
) -> Prepared:
    content = source.info.digest if resize is None else digest(source.info.digest, "resize", resize)
    _check_output(out)
    if (out / MANIFEST).exists():
        manifest = Manifest.from_json((out / MANIFEST).read_bytes(), str(out / MANIFEST))
        if manifest.info.digest != content:
            raise UserError(
                f"out: {str(out)!r} holds shards of other images or another size; give an empty folder"
            )
        if all((out / shard_name(shard)).exists() for shard in range(len(manifest.shard_rows))):
            return Prepared(str(out), manifest.info.num_samples, len(manifest.shard_rows), 0)

    packer = Packer(source, resize)
    identity = {"digest": content, "shard_bytes": shard_bytes, "batch_rows": packer.batch_rows}
    shard_rows = _finished_shards(out, identity)
    num_found, total = len(shard_rows), source.info.num_samples
    broken: list[Broken] = []
    batches = _in_order(packer.pack, packer.ranges(sum(shard_rows), total), workers or cpu_count() or 1)

    def write_shard(stream: Any) -> int:
        """Takes batches until the shard is full. Returns its rows."""
        start = sum(shard_rows)
        schema = SCHEMA.with_metadata({_METADATA: json.dumps(identity | {"start": start})})
        rows = size = 0
        with pa.ipc.new_file(stream, schema) as writer:
            for batch, failures in batches:
                writer.write_batch(batch)
                broken.extend(failures)
                rows, size = rows + batch.num_rows, size + batch.nbytes
                if on_progress:
                    on_progress(start + rows, total)
                if size >= shard_bytes:
                    break
        return rows

    while sum(shard_rows) < total:
        shard_rows.append(_write(out / shard_name(len(shard_rows)), write_shard))

    def write_index(stream: Any) -> None:
        with pq.ParquetWriter(stream, INDEX_SCHEMA) as writer:
            for part in packer.index():
                writer.write_table(part)

    _write(out / INDEX, write_index)
    image_size = source.info.image_size
    if resize is not None:
        image_size = median_size(packer.encoded, source.path, sample_indices(total))
    info = replace(source.info, digest=content, image_size=image_size)
    manifest = Manifest(info, tuple(shard_rows), packer.batch_rows, resize)
    # Last, since its presence says that all the rest is there.
    _write(out / MANIFEST, lambda stream: stream.write(manifest.to_json().encode()))
    written = len(shard_rows) - num_found
    return Prepared(str(out), total, len(shard_rows), written, tuple(broken), packer.left_out)


def prepare_dataset(
    dataset: Dataset, out_uri: "str | PathLike[str] | Location", **options: Any
) -> dict[str, Prepared]:
    """Writes both parts of a data set, to the sub-folders `train` and `val`. options: as of `prepare`."""
    out = Location.of(out_uri)
    parts = {"train": dataset.train} | ({} if dataset.val is None else {"val": dataset.val})
    return {name: prepare(source, out / name, **options) for name, source in parts.items()}


def _in_order(
    function: Callable[[Int64], tuple[Any, list[Broken]]], items: Iterator[Int64], workers: int
) -> Iterator[tuple[Any, list[Broken]]]:
    """Results in the order of the items, computed a few ahead by threads; decoding lets go of Python's lock."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[tuple[Any, list[Broken]]]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _check_output(out: Location) -> None:
    """Refuses a folder that holds other files, so that nothing is mixed or lost."""
    if not out.exists():
        return
    if out.is_file():
        raise UserError(f"out: {str(out)!r} is a file; give a folder")
    ours = (MANIFEST, INDEX)
    others = [
        path for path, _ in out.list(recursive=False) if path not in ours and not path.startswith("shard-")
    ]
    others = [path for path in others if path.removesuffix(".tmp") not in ours]
    if others:
        raise UserError(f"out: {str(out)!r} holds other files ({others[0]}); give an empty folder")


def _finished_shards(out: Location, identity: dict[str, Any]) -> list[int]:
    """Rows of the shards that an earlier call completed. Raises UserError when they do not belong to this one."""
    shard_rows: list[int] = []
    while (shard := out / shard_name(len(shard_rows))).exists():
        reader = pa.ipc.open_file(shard.open())
        stored = json.loads((reader.schema.metadata or {}).get(_METADATA, b"{}"))
        if stored != identity | {"start": sum(shard_rows)}:
            raise UserError(
                f"out: {str(shard)!r} was written from other images or options; give an empty folder"
            )
        last = reader.num_record_batches - 1
        shard_rows.append(last * identity["batch_rows"] + reader.get_batch(last).num_rows)
    return shard_rows


def _write(target: Location, write: Callable[[Any], Any]) -> Any:
    """Writes a file that appears under its name only when it is complete. Returns what `write` returns."""
    files, path = target.filesystem, target.full_path
    if target.is_local:
        files.create_dir(path.rpartition("/")[0], recursive=True)
    with files.open_output_stream(path + ".tmp") as stream:
        result = write(stream)
    files.move(path + ".tmp", path)
    return result
