"""Images as evaluation sees them: each once, in its plain view, dealt to the ranks."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.data.pipeline import ViewPipeline, make_batch
from ssl_ray.data.plan import Permutation
from ssl_ray.data.source import Source
from ssl_ray.data.views import plain_views

_KEEP_BYTES = (
    4 << 30
)  # decoded images of one split stay in memory up to this size; more are decoded at each run
_THREADS = min(8, os.cpu_count() or 1)
_PIECE = 32  # images that a thread decodes at a time, at most

Indices = NDArray[np.int64]
Decoded = Future[tuple[dict[str, np.ndarray], list[tuple[int, str]]]]


class PlainImages:
    """This rank's share of up to `limit` images of a source in their plain view, decoded once and kept where they fit.

    The images are drawn without repetition by a fixed permutation, so that a folder sorted by class gives every class
    its share; they come in ascending order of index, rank r has every W-th. Resized and centre-cropped to `size`
    pixels; those not larger than that are not cropped. broken: gets path -> reason of those that cannot be decoded;
    they are left out.
    """

    def __init__(
        self, source: Source, size: int, limit: int | None, batch_size: int, broken: dict[str, str]
    ) -> None:
        total = source.info.num_samples
        chosen = np.arange(total)
        if limit is not None and limit < total:
            chosen = np.sort(Permutation(total, seed=0)(np.arange(limit)))
        indices = chosen[distributed.rank() :: distributed.world_size()]
        self._chunks = in_batches(indices, batch_size)
        self.source = source
        self._pipeline = plain_pipeline(source, size)
        self._broken = broken
        self._keep = len(indices) * size * size * 3 <= _KEEP_BYTES
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (b, 3, size, size) uint8, channels last in memory, and their index (b,) int64."""
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        for batch in plain_batches(self.source, self._chunks, self._pipeline, self._broken):
            if self._keep:
                kept.append(batch)
            yield batch
        self._kept = kept if self._keep else None


def in_batches(indices: Indices, batch_size: int) -> list[Indices]:
    """The indices in pieces of `batch_size`, the last may be shorter."""
    return np.split(indices, range(batch_size, len(indices), batch_size))


def crop_fraction(source: Source, size: int) -> float:
    """Share of the short side that is kept: "resize 256, crop 224" where images are larger than `size`, else all."""
    return 0.875 if min(source.info.image_size) > size else 1.0


def plain_pipeline(source: Source, size: int) -> ViewPipeline:
    """The plain view of a source's images at `size` pixels a side."""
    return plain_views(size, crop_fraction=crop_fraction(source, size))


def plain_batches(
    source: Source,
    chunks: Sequence[Indices],
    pipeline: ViewPipeline,
    broken: dict[str, str],
    threads: int = _THREADS,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (b, 3, size, size) uint8 and index (b,) int64 of each chunk; threads decode one chunk ahead.

    broken: gets path -> reason of images that cannot be decoded; they are left out of their batch.
    """
    piece = max(1, min(_PIECE, -(-len(chunks[0]) // threads)))  # work for every thread

    def start(chunk: Indices) -> list[Decoded]:
        blobs = source.read(chunk)
        pieces = [slice(i, i + piece) for i in range(0, max(1, len(chunk)), piece)]
        return [pool.submit(make_batch, pipeline, blobs[p], chunk[p], 0, 0) for p in pieces]

    with ThreadPoolExecutor(threads) as pool:
        # The next chunk is under way while this one is in use.
        under_way = start(chunks[0])
        for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
            futures = under_way
            if following is not None:
                under_way = start(following)
            yield _collect(source, chunk, futures, piece, broken)


def _collect(
    source: Source, chunk: Indices, futures: list[Decoded], piece: int, broken: dict[str, str]
) -> tuple[Tensor, Tensor]:
    whole = np.ones(len(chunk), bool)
    images = []
    for first, future in zip(range(0, max(1, len(chunk)), piece), futures, strict=True):
        columns, failures = future.result()
        images.append(columns["view_0"])
        for row, reason in failures:
            whole[first + row] = False
            broken[source.path(int(chunk[first + row]))] = reason
    view = torch.from_numpy(np.concatenate(images)[whole])
    return view.permute(0, 3, 1, 2), torch.from_numpy(chunk[whole])
