"""Arrow IPC shards written by `ssl-ray data prepare`: random access at the cost of one small read.

A shard folder holds `dataset.json` (what follows is in it), `index.parquet` (index, label, path of every image) and the
shards. A shard is an Arrow IPC file with columns index, image, label, path, in record batches of a fixed number of
rows (the last may be shorter), so that the place of an image follows from its index. So it does in the index, whose row
groups are alike.
"""

import json
from collections import deque
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_ray.data.plan import Int64
from ssl_ray.data.sources.base import DatasetInfo
from ssl_ray.data.sources.location import Location
from ssl_ray.errors import UserError

MANIFEST, INDEX = "dataset.json", "index.parquet"
FORMAT = "ssl-ray-shards-1"
SCHEMA = pa.schema(
    [("index", pa.int64()), ("image", pa.binary()), ("label", pa.int64()), ("path", pa.string())]
)
INDEX_SCHEMA = pa.schema([SCHEMA.field(name) for name in ("index", "label", "path")])


@dataclass(frozen=True)
class Manifest:
    """The content of dataset.json. shard_rows: images in shard 0, 1, ...; batch_rows: images in a record batch."""

    info: DatasetInfo
    shard_rows: tuple[int, ...]
    batch_rows: int
    resize: int | None = None
    format: str = FORMAT

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "Manifest":
        """From text. Raises UserError when it is not the dataset.json of a shard folder."""
        try:
            values = json.loads(text)
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}, expected {FORMAT!r}")
            info = values["info"]
            names = info["class_names"]
            info = info | {"image_size": tuple(info["image_size"]), "class_names": names and tuple(names)}
            shard_rows = tuple(values["shard_rows"])
            return cls(DatasetInfo(**info), shard_rows, values["batch_rows"], values["resize"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"data: {where!r} was not written by `ssl-ray data prepare`: {error}") from error


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.arrow"


class ShardSource:
    """Images of a shard folder; memory-mapped when local, one small range read for each image otherwise."""

    note = ""

    def __init__(self, root: Location) -> None:
        manifest = Manifest.from_json(root.read_bytes(MANIFEST), str(root / MANIFEST))
        self.root, self.info, self.batch_rows = root, manifest.info, manifest.batch_rows
        self.class_names = manifest.info.class_names
        self._starts = np.concatenate([[0], np.cumsum(manifest.shard_rows, dtype=np.int64)])
        # One listing: a question for each shard would be a request for each on an object store.
        present = {path for path, _ in root.list(recursive=False)}
        for name in map(shard_name, range(len(manifest.shard_rows))):
            if name not in present:
                raise UserError(f"data: {str(root / name)!r} is missing; run `ssl-ray data prepare` again")

    def read(self, indices: Int64) -> list[bytes]:
        """As Source.read."""
        indices = np.asarray(indices, np.int64)
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        batches, rows = np.divmod(indices - self._starts[shards], self.batch_rows)
        places = list(zip(shards.tolist(), batches.tolist(), strict=True))
        needed = sorted(set(places))  # Each record batch is read once.
        images = dict(zip(needed, self.root.map_reads(self._images, needed), strict=True))
        return [images[place][row].as_py() for place, row in zip(places, rows.tolist(), strict=True)]

    def _images(self, place: tuple[int, int]) -> Any:
        shard, batch = place
        file = self.root / shard_name(shard)
        idle = _idle_readers(file)
        try:
            reader = idle.pop()
        except IndexError:
            reader = pa.ipc.open_file(file.open())
        images = reader.get_batch(batch).column("image")
        idle.append(reader)
        return images

    def labels(self) -> Int64 | None:
        """As Source.labels."""
        if self.info.num_classes is None:
            return None
        labels: Int64 = pq.read_table((self.root / INDEX).open(), columns=["label"]).column(0).to_numpy()
        return labels

    def path(self, index: int) -> str:
        """As Source.path: where the image came from. Reads the index's row group that says so, not all of it."""
        group, row = divmod(index, _group_rows(self.root / INDEX))
        return str(_paths(self.root / INDEX, group)[row].as_py())


@lru_cache(maxsize=512)  # A local reader holds an open file; 1,024 are allowed by default.
def _idle_readers(shard: Location) -> deque[Any]:
    """Readers of a shard that nobody uses just now. One serves one thread; many read an object store at once."""
    return deque()


@lru_cache(maxsize=16)
def _group_rows(index: Location) -> int:
    return int(pq.read_metadata(index.open()).row_group(0).num_rows)


@lru_cache(maxsize=4)
def _paths(index: Location, group: int) -> Any:
    return pq.ParquetFile(index.open()).read_row_group(group, columns=["path"]).column(0)
