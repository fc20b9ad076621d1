"""Images that are files of their own, below one folder; class sub-folders are the labels."""

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_ray.data.decode import Unread
from ssl_ray.data.plan import Int64
from ssl_ray.data.sources.base import DatasetInfo, class_count, counted, digest, median_size, sample_indices
from ssl_ray.data.sources.location import Location
from ssl_ray.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


def is_image(path: str) -> bool:
    """True for the suffix of an image, in any case."""
    return path.lower().endswith(SUFFIXES)


class FolderSource:
    """The image files of `listing` below `root`, by path; the first folder of a path is the class.

    Unlabelled when an image lies outside a sub-folder or when there is one sub-folder only. listing: what
    `root.list(recursive=True)` gave. class_names: of the training part, for its held-out part.
    Raises UserError when there is no image.
    """

    def __init__(
        self,
        root: Location,
        listing: Iterable[tuple[str, int | None]],
        *,
        name: str,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        listing = list(listing)
        files = [(path, size) for path, size in listing if size is not None]
        images = [(path, size) for path, size in files if is_image(path)]
        ignored = " and ".join(
            filter(
                None,
                (
                    counted("files that are not images by suffix", (p for p, _ in files if not is_image(p))),
                    counted("broken links, special files or names that are not UTF-8", _odd(root, listing)),
                ),
            )
        )
        if not images:
            raise UserError(
                f"data: no image in {str(root)!r}{', only ' + ignored if ignored else ''}; "
                f"allowed suffixes: {' '.join(SUFFIXES)}; Parquet files and prepared shards are read too"
            )
        self.root = root
        self._paths = pa.array([path for path, _ in images], pa.large_string())
        self.note = f"ignored {ignored}" if ignored else ""
        folders = Counter(path.partition("/")[0] if "/" in path else "" for path, _ in images)
        labelled = "" not in folders and (len(folders) > 1 or class_names is not None)
        if "" in folders and len(folders) > 1:
            self.note += (
                f"{'; ' if self.note else ''}unlabelled: {folders['']} images lie outside a class folder"
            )
        self.class_names = (class_names or tuple(sorted(folders))) if labelled else None
        if unknown := set(folders) - set(self.class_names or folders):
            raise UserError(
                f"data: folder {min(unknown)!r} in {str(root)!r} is no class of the training part"
            )

        num_samples = len(self._paths)
        size = median_size(self.read, self.path, sample_indices(num_samples))
        content = digest("\n".join(f"{path}\t{size}" for path, size in images).encode())
        classes = class_count(self.labels(), self.class_names)
        self.info = DatasetInfo(name, num_samples, size, classes, content, self.class_names)

    def read(self, indices: Int64) -> list[bytes]:
        """As Source.read; concurrent on an object store. A file that cannot be read is `Unread`, a broken image."""
        paths = self._paths.take(pa.array(np.asarray(indices, np.int64))).to_pylist()
        return self.root.map_reads(self._read, paths)

    def _read(self, path: str) -> bytes:
        try:
            return self.root.read_bytes(path)
        except (FileNotFoundError, PermissionError) as error:
            return Unread.because(_reason(error))
        except OSError as error:
            if not self.root.is_local:  # a store that does not answer says nothing about this image
                raise
            return Unread.because(_reason(error))

    def labels(self) -> Int64 | None:
        """As Source.labels: the position of the class folder in `class_names`."""
        if self.class_names is None:
            return None
        folders = pc.replace_substring_regex(self._paths, pattern="(?s)/.*", replacement="")
        labels: Int64 = pc.index_in(
            folders, value_set=pa.array(self.class_names, pa.large_string())
        ).to_numpy()
        return labels.astype(np.int64)

    def path(self, index: int) -> str:
        """As Source.path."""
        return str(self.root / self._paths[index].as_py())

    def __getstate__(self) -> dict[str, Any]:
        # A million sorted paths shrink about ten times.
        sink = pa.BufferOutputStream()
        batch = pa.record_batch([self._paths], names=["path"])
        with pa.ipc.new_stream(
            sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
        ) as writer:
            writer.write_batch(batch)
        return self.__dict__ | {"_paths": sink.getvalue().to_pybytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        table = pa.ipc.open_stream(state["_paths"]).read_all()
        self.__dict__ = state | {"_paths": table.column(0).combine_chunks()}


def _reason(error: OSError) -> str:
    return f"cannot be read: {error.strerror or error}"


def _odd(root: Location, listing: list[tuple[str, int | None]]) -> list[str]:
    """Paths of a local listing that are neither files nor folders."""
    if not root.is_local:
        return []
    return [
        path
        for path, size in listing
        if size is None and not os.path.isdir(os.path.join(root.full_path, path))
    ]
