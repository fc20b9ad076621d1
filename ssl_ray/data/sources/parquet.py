"""Images in one Parquet file or a folder of them, read by row group."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_ray.data.plan import Int64
from ssl_ray.data.sources.base import DatasetInfo, class_count, digest, median_size
from ssl_ray.data.sources.columns import class_names_of, columns_of, find_image_column, find_label_column
from ssl_ray.data.sources.location import Location
from ssl_ray.errors import StoreError, UserError

# What one process keeps of the row groups it read last.
CACHE_BYTES = 256 * 2**20
# Larger numbers are identifiers, not classes.
MAX_CLASSES = 1_000_000


class ParquetSource:
    """Rows of `files` below `root`, in order. An image is bytes, or a struct with `bytes` as Hugging Face writes it.

    To read one image its whole row group is read; the last ones stay in memory (256 MiB a process).
    image_column, label_column: found by type and name unless given. class_names: of the training part, for its
    held-out part. Raises UserError when a file is not Parquet or has no image column.
    """

    def __init__(
        self,
        root: Location,
        files: Sequence[str],
        *,
        name: str,
        image_column: str | None = None,
        label_column: str | None = None,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        self.root, self.files, self.note = root, tuple(files), ""
        schemas = [_open(self._file(i)).schema_arrow for i in range(len(self.files))]
        column = find_image_column(schemas[0], image_column, root)
        self.image_column = f"{column}.bytes" if pa.types.is_struct(schemas[0].field(column).type) else column
        self.label_column = find_label_column(schemas[0], label_column, root)
        for file, schema in zip(self.files, schemas, strict=True):
            for needed in filter(None, (column, self.label_column)):
                if needed not in schema.names:
                    raise UserError(
                        f"data: {str(root / file)!r} has no column {needed!r}; {columns_of(schema)}"
                    )

        # One row (file, row group, rows, bytes) for each row group that is not empty.
        groups = np.array(
            [row for i in range(len(self.files)) for row in self._row_groups(i)], np.int64
        ).reshape(-1, 4)
        groups = groups[groups[:, 2] > 0]
        if not len(groups):
            raise UserError(f"data: {str(root)!r} holds no rows; give Parquet files with at least one image")
        self._groups = groups[:, :2]
        self._starts = np.concatenate([[0], np.cumsum(groups[:, 2])])
        if groups[:, 3].sum() > CACHE_BYTES:
            self.note = (
                f"an image of {root} is read with its row group of {int(groups[:, 3].mean()) / 2**20:.0f} MiB; "
                "`ssl-ray data prepare` writes shards with fast random access"
            )

        num_samples = int(self._starts[-1])
        self.class_names = (
            class_names or class_names_of(schemas[0], self.label_column) or self._label_values()
        )
        labels = self.labels()
        if self.label_column and labels is None:
            self.note = (
                f"column {self.label_column!r} holds missing, negative or huge labels: taken as unlabelled"
            )
        # Neighbours, so that few row groups are read.
        size = median_size(self.read, self.path, np.arange(min(16, num_samples)))
        content = digest(self.files, groups.tobytes(), self.image_column, self.label_column)
        names = self.class_names if labels is not None else None
        self.info = DatasetInfo(name, num_samples, size, class_count(labels, names), content, names)

    def _file(self, i: int) -> Location:
        return self.root / self.files[i] if self.files[i] else self.root

    def _row_groups(self, i: int) -> list[tuple[int, int, int, int]]:
        metadata = _open(self._file(i)).metadata
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        return [(i, k, group.num_rows, group.total_byte_size) for k, group in enumerate(groups)]

    def read(self, indices: Int64) -> list[bytes]:
        """As Source.read. Each row group is read once, whatever the order of the indices."""
        indices = np.asarray(indices, np.int64)
        group_of = np.searchsorted(self._starts, indices, side="right") - 1
        blobs: list[bytes] = [b""] * len(indices)
        for group in np.unique(group_of):
            rows = np.flatnonzero(group_of == group)
            file, row_group = self._groups[group].tolist()
            images = _ROW_GROUPS.get(self._file(file), row_group, self.image_column)
            taken = images.take(pa.array(indices[rows] - self._starts[group])).to_pylist()
            for row, data in zip(rows.tolist(), taken, strict=True):
                blobs[row] = data or b""  # A missing image is a broken one.
        return blobs

    def _label_values(self) -> tuple[str, ...] | None:
        """Sorted names of the classes when labels are text."""
        column = self._label_array()
        if column is None or not pa.types.is_string(column.type):
            return None
        return tuple(sorted(value for value in pc.unique(column).to_pylist() if value is not None))

    def _label_array(self) -> Any:
        if self.label_column is None:
            return None
        files = [_open(self._file(i)) for i in range(len(self.files))]
        column = pa.concat_tables([f.read(columns=[self.label_column]) for f in files]).column(0)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return column.cast(pa.string()) if pa.types.is_large_string(column.type) else column

    def labels(self) -> Int64 | None:
        """As Source.labels. Text labels are numbered in the order of `class_names`."""
        column = self._label_array()
        if column is None:
            return None
        if pa.types.is_string(column.type):
            unknown = set(pc.unique(column).to_pylist()) - {None} - set(self.class_names or ())
            if unknown:
                raise UserError(
                    f"data: label {min(unknown)!r} in {str(self.root)!r} is no class of the training part"
                )
            column = pc.index_in(column, value_set=pa.array(self.class_names, pa.string()))
        values: Int64 = column.cast(pa.int64()).fill_null(-1).to_numpy()
        return None if values.min() < 0 or values.max() >= MAX_CLASSES else values

    def path(self, index: int) -> str:
        """As Source.path: file and row of the whole set."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self._file(int(self._groups[group, 0]))} row {index}"


class _RowGroups:
    """Row groups by last use, bounded in bytes; shared by the sources of a process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Location, int, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: Location, row_group: int, column: str) -> Any:
        key = (file, row_group, column)
        with self._lock:  # A ParquetFile is not safe to share between threads.
            if key not in self._kept:
                images = _open(file).read_row_group(row_group, columns=[column]).column(0)
                self._kept[key] = (
                    pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images
                )
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(images.nbytes for images in self._kept.values()) > CACHE_BYTES:
                self._kept.popitem(last=False)
            return self._kept[key]


_ROW_GROUPS = _RowGroups()


@lru_cache(maxsize=256)
def _open(file: Location) -> Any:
    try:
        return pq.ParquetFile(file.open())
    except StoreError as error:
        raise UserError(f"data: {error}") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"data: {str(file)!r} is not a readable Parquet file: {error}") from error
