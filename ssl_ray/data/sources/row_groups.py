"""Row groups of Parquet files: the images of one, whatever their type, and the last ones kept in memory."""

import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssl_ray.data.decode import Unread
from ssl_ray.data.sources.classes import plain
from ssl_ray.data.sources.columns import stored, types_of
from ssl_ray.data.sources.location import Location
from ssl_ray.errors import StoreError, UserError

# What one process keeps of the row groups it read last.
CACHE_BYTES = 256 * 2**20
# What is read of a row group at once: pyarrow cannot read more than 2 GiB of bytes that are inside a struct.
BATCH_BYTES = 256 * 2**20
_MISSING = Unread.because("the image is missing (null)")


class RowGroups:
    """Row groups by last use, bounded in bytes; shared by the sources of a process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Location, int, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: Location, row_group: int, column: str) -> Any:
        """The images of a row group: a chunked array, whose scalars `encoded` reads."""
        key = (file, row_group, column)
        with self._lock:  # A ParquetFile is not safe to share between threads.
            if key not in self._kept:
                self._kept[key] = images_of(open_parquet(file), row_group, column)
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(images.nbytes for images in self._kept.values()) > CACHE_BYTES:
                self._kept.popitem(last=False)
            return self._kept[key]


ROW_GROUPS = RowGroups()


def images_of(file: Any, row_group: int, column: str) -> Any:
    """The images of a row group, a chunked array: nothing here may put its chunks together, 2 GiB would be too much."""
    kind = types_of(file.schema_arrow)[column]
    inside = pa.types.is_struct(stored(kind))
    metadata = file.metadata.row_group(row_group)
    rows = max(1, BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size))
    chosen = [f"{column}.bytes" if inside else column]
    batches = list(file.iter_batches(min(rows, metadata.num_rows), [row_group], chosen))
    images = pa.chunked_array([batch.column(column) for batch in batches])
    return pc.struct_field(plain(images), "bytes") if inside else images


def encoded(image: Any) -> bytes:
    """The bytes of one image, a scalar of any type that `holds_images`. A missing image is a broken one."""
    while isinstance(image, pa.ExtensionScalar | pa.DictionaryScalar):
        image = image.value
    if image is None or not image.is_valid:
        return _MISSING
    if isinstance(image, pa.ListScalar):
        return bytes(image.values.to_numpy(zero_copy_only=False).astype(np.uint8, copy=False))
    return bytes(image.as_py())


@lru_cache(maxsize=256)
def open_parquet(file: Location) -> Any:
    """The pyarrow ParquetFile, kept open. Raises UserError for what is none."""
    try:
        return pq.ParquetFile(file.open())
    except StoreError as error:
        raise UserError(f"data: {error}") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"data: {str(file)!r} is not a readable Parquet file: {error}") from error
