"""Images that are files of their own, below one folder; class sub-folders are the labels."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssl_ray.data.decode import Unread, suffixes
from ssl_ray.data.plan import Int64
from ssl_ray.data.sources.base import DatasetInfo, class_count, counted, digest, median_size, sample_indices
from ssl_ray.data.sources.layout import look_through
from ssl_ray.data.sources.location import Location
from ssl_ray.errors import UserError

SUFFIXES = suffixes()
# Pictures, too, but nothing here decodes them to pixels of 8 bits.
_FOREIGN_NAMES = """
heic heif hif jxl jxr psd ico svg eps pic sr ras dib pcx qoi dds hdr exr pfm dcm dng cr2 cr3 nef arw raf orf rw2
"""
_FOREIGN = tuple(f".{name}" for name in _FOREIGN_NAMES.split())


def is_image(path: str) -> bool:
    """True for the suffix of an image that can be decoded, in any case."""
    return path.lower().endswith(SUFFIXES)


class FolderSource:
    """The image files of `listing` below `root`, by path; the first folder of a path is the class.

    Folders that hold all images, one in the other, are looked through. Unlabelled when an image lies outside a
    sub-folder or when there is one sub-folder only. listing: what `root.list(recursive=True)` gave. class_names: of the
    training part, for its held-out part. Raises UserError when there is no image.
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
        images = [(path, size) for path, size in listing if size is not None and is_image(path)]
        ignored = _ignored(root, listing)
        if not images:
            raise UserError(
                f"data: no image in {str(root)!r}{', only ' + ignored if ignored else ''}; "
                f"allowed suffixes: {' '.join(SUFFIXES)}; Parquet files and prepared shards are read too"
            )
        self.root = root
        paths = [path for path, _ in images]
        self._paths = pa.array(paths, pa.large_string())
        known = set(class_names or ())
        self._base = look_through(paths, known.__contains__)
        folders = Counter(_class_of(path, len(self._base)) for path in paths)
        labelled = "" not in folders and (len(folders) > 1 or class_names is not None)
        self.class_names = (class_names or tuple(sorted(folders))) if labelled else None
        if unknown := sorted(set(folders) - set(self.class_names or folders)):
            raise UserError(
                f"data: {counted('folders', unknown)} in {str(root / self._base)!r} are no classes of the training "
                f"part; it has {counted('classes', self.class_names or ())}"
            )
        self.note = "; ".join(
            filter(None, (ignored and f"ignored {ignored}", *self._remarks(paths, folders, known)))
        )

        num_samples = len(self._paths)
        size = median_size(self.read, self.path, sample_indices(num_samples))
        content = digest("\n".join(f"{path}\t{size}" for path, size in images).encode())
        classes = class_count(self.labels(), self.class_names)
        self.info = DatasetInfo(name, num_samples, size, classes, content, self.class_names)

    def _remarks(self, paths: Sequence[str], folders: Counter[str], known: set[str]) -> Iterator[str]:
        """What the user should know of how folders became classes."""
        base = self._base.rstrip("/")
        if self.class_names is None:
            if len(folders) > 1:
                yield f"unlabelled: {folders['']} images lie outside a class folder"
            elif base:
                yield f"unlabelled: all images lie in one folder, {base!r}" + (
                    ", which is no class of the training part" if known else ""
                )
            return
        if base:
            yield f"the classes are the folders in {base!r}"
        if missing := sorted(known - set(folders)):
            yield f"no images held out of {counted('classes', missing)}"
        start = len(self._base)
        deeper = {
            path[: path.index("/", path.index("/", start) + 1)]
            for path in paths
            if path.count("/", start) > 1
        }
        if deeper:
            yield f"the first folder is the class, deeper ones are not: {counted('deeper folders', sorted(deeper))}"

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
        below = pc.utf8_slice_codeunits(self._paths, start=len(self._base)) if self._base else self._paths
        folders = pc.replace_substring_regex(below, pattern="(?s)/.*", replacement="")
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


def _class_of(path: str, start: int) -> str:
    """The first folder of what follows `start`; "" for a file that lies there."""
    end = path.find("/", start)
    return path[start:end] if end >= 0 else ""


def _ignored(root: Location, listing: list[tuple[str, int | None]]) -> str:
    """What is in a listing beside images, in words."""
    others = [path for path, size in listing if size is not None and not is_image(path)]
    foreign = [path for path in others if path.lower().endswith(_FOREIGN)]
    others = [path for path in others if not path.lower().endswith(_FOREIGN)]
    found = (
        counted("images to convert to PNG or JPEG, as their format is not read", foreign),
        counted("files that are not images by suffix", others),
        counted("broken links, special files or names that are not UTF-8", _odd(root, listing)),
    )
    return " and ".join(filter(None, found))


def _odd(root: Location, listing: list[tuple[str, int | None]]) -> list[str]:
    """Paths of a local listing that are neither files nor folders."""
    if not root.is_local:
        return []
    return [
        path
        for path, size in listing
        if size is None and not os.path.isdir(os.path.join(root.full_path, path))
    ]
