"""Turns a source's images into the record batches that a shard is made of."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from ssl_ray.data.decode import BrokenImage, decode, left_out
from ssl_ray.data.plan import Int64
from ssl_ray.data.sources.base import Source, sample_indices
from ssl_ray.data.sources.shards import INDEX_SCHEMA, SCHEMA

# One image costs the read of its record batch: small on an object store, yet large enough for tiny images.
_BATCH_BYTES = 256 * 2**10
_JPEG_QUALITY = 95
# To name one image costs the read of its row group of the index: a few MB.
INDEX_ROWS = 65536

Broken = tuple[int, str, str]


class Packer:
    """Makes the record batches of one source. left_out: what of images that were resized is lost -> their paths."""

    def __init__(self, source: Source, resize: int | None) -> None:
        self.left_out: dict[str, list[str]] = {}
        self.source, self.resize, self.labels = source, resize, source.labels()
        # The sample is the same every time, so a continued run cuts the same batches.
        sizes = [len(data) for data in self.encoded(sample_indices(source.info.num_samples, 64))]
        self.batch_rows = int(np.clip(_BATCH_BYTES // max(1, int(np.mean(sizes))), 1, 1024))

    def ranges(self, start: int, stop: int) -> Iterator[Int64]:
        """Indices of the record batches from `start` on."""
        for first in range(start, stop, self.batch_rows):
            yield np.arange(first, min(first + self.batch_rows, stop))

    def encoded(self, indices: Int64) -> list[bytes]:
        """The images as they are stored."""
        return [self._resized(data)[0] for data in self.source.read(indices)]

    def pack(self, indices: Int64) -> tuple[Any, list[Broken]]:
        """A record batch, and the images in it that are broken."""
        given = self.source.read(indices)
        stored = [self._resized(data) for data in given]
        paths = [self.source.path(i) for i in indices.tolist()]
        for before, (after, _), path in zip(given, stored, paths, strict=True):
            if after is not before and (what := left_out(before)):
                self.left_out.setdefault(what, []).append(path)
        labels = [None] * len(indices) if self.labels is None else self.labels[indices]
        columns = [indices, [data for data, _ in stored], labels, paths]
        batch = pa.record_batch(
            [pa.array(c, t.type) for c, t in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
        )
        rows = zip(indices.tolist(), paths, stored, strict=True)
        return batch, [(index, path, reason) for index, path, (_, reason) in rows if reason]

    def index(self) -> Iterator[Any]:
        """Tables of all images without their bytes, `INDEX_ROWS` each: all paths may be more than memory holds."""
        total = self.source.info.num_samples
        for start in range(0, total, INDEX_ROWS):
            indices = np.arange(start, min(start + INDEX_ROWS, total))
            labels = pa.nulls(len(indices), pa.int64()) if self.labels is None else self.labels[indices]
            paths = [self.source.path(i) for i in indices.tolist()]
            yield pa.table([indices, labels, paths], schema=INDEX_SCHEMA)

    def _resized(self, data: bytes) -> tuple[bytes, str]:
        """(bytes to store, why the image is broken or "")."""
        if self.resize is None:
            return data, ""
        try:
            image = decode(data)
        except BrokenImage as error:
            return data, error.reason
        height, width = image.shape[:2]
        scale = self.resize / min(height, width)
        if scale >= 1:
            return data, ""
        size = max(self.resize, round(width * scale)), max(self.resize, round(height * scale))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes(), ""
