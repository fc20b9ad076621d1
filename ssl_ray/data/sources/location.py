"""Where files live: a local path, a file inside this package, or any URI that pyarrow.fs opens."""

import builtins
import fcntl
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from ssl_ray.data.sources.walk import is_hidden, walk
from ssl_ray.errors import StoreError, UserError, first_line
from ssl_ray.filesystems import open_uri
from ssl_ray.redact import redact

Item = TypeVar("Item")
Result = TypeVar("Result")
# Requests in flight on an object store.
_REMOTE_READS = 32
# The path differs from machine to machine, so it is looked up where it is used.
EMBEDDED = "embedded:"


@dataclass(frozen=True)
class Location:
    """A file or folder: `path` below the URI or absolute local path `root`. Small, picklable, printable."""

    root: str
    path: str = ""

    @classmethod
    def of(cls, uri: "str | os.PathLike[str] | Location") -> "Location":
        """A location for what the user wrote; `~` and relative local paths are resolved now."""
        if isinstance(uri, Location):
            return uri
        text = os.fspath(uri)
        return cls(text if is_uri(text) else os.path.abspath(os.path.expanduser(text)))

    def __str__(self) -> str:
        shown = redact(self.root)
        address, mark, query = shown.partition("?") if is_uri(shown) else (shown, "", "")
        return posixpath.join(address, self.path).rstrip("/") + mark + query if self.path else shown

    def __truediv__(self, path: str) -> "Location":
        return Location(self.root, posixpath.join(self.path, path))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.full_path.rstrip("/"))

    @property
    def filesystem(self) -> Any:
        """The pyarrow file system."""
        return _resolve(self.root)[0]

    @property
    def full_path(self) -> str:
        """The path that the file system knows."""
        base = _resolve(self.root)[1]
        return posixpath.join(base, self.path) if self.path else base

    @property
    def is_local(self) -> bool:
        """True for files of this machine, which can be memory-mapped."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def stat(self) -> Any:
        """The FileInfo of pyarrow (type, size). Raises UserError when the file system cannot be reached."""
        try:
            return self.filesystem.get_file_info(self.full_path)
        except StoreError as error:
            raise UserError(f"data: {error}") from error
        except OSError as error:
            raise UserError(f"data: cannot open {str(self)!r}: {redact(first_line(error))}") from error

    def exists(self) -> bool:
        """True for an existing file or folder."""
        return bool(self.stat().type != fs.FileType.NotFound)

    def is_file(self) -> bool:
        """True for an existing file."""
        return bool(self.stat().type == fs.FileType.File)

    def list(self, *, recursive: bool) -> list[tuple[str, int | None]]:
        """(relative path, size) of what a folder holds, sorted; size None for a folder. Hidden names are left out.

        Here, on this machine, size None stands for all that is no file: see `walk`.
        """
        base = self.full_path
        try:
            if self.is_local:
                return sorted(walk(base, recursive=recursive), key=lambda entry: entry[0])
            found = self.filesystem.get_file_info(fs.FileSelector(base, recursive=recursive))
        except StoreError as error:
            raise UserError(f"data: {error}") from error
        except OSError as error:
            raise UserError(f"data: cannot list {str(self)!r}: {redact(first_line(error))}") from error
        start = len(base.rstrip("/")) + 1
        entries = []
        for info in found:
            path = info.path[start:]
            if not any(map(is_hidden, path.split("/"))):
                entries.append((path, None if info.type == fs.FileType.Directory else info.size))
        return sorted(entries, key=lambda entry: entry[0])

    def read_bytes(self, path: str = "") -> bytes:
        """The content of this file, or of a file below this folder."""
        full = posixpath.join(self.full_path, path) if path else self.full_path
        if self.is_local:
            return Path(full).read_bytes()  # Three times faster than through pyarrow.
        with self.filesystem.open_input_file(full) as file:
            return bytes(file.read())

    def write_bytes(self, data: Any) -> None:
        """Writes this file, and the folders above it; it appears under its name only when it is whole.

        Raises UserError when it cannot be written.
        """
        files, path = self.filesystem, self.full_path
        folder, _, name = path.rpartition("/")
        # Object stores show an object when its last byte is there. Readers of a folder of tables skip names with "_".
        target = f"{folder}/_{name}.{uuid.uuid4().hex}.tmp" if self.is_local else path
        try:
            if self.is_local:
                files.create_dir(folder, recursive=True)
            with files.open_output_stream(target) as stream:
                stream.write(data)
            if target != path:
                files.move(target, path)
        except OSError as error:
            raise UserError(f"{str(self)!r} cannot be written: {redact(first_line(error))}") from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes of this kind from writing to this folder meanwhile; made if it is not there.

        Of an object store nobody can be kept out. Raises UserError when another one is writing.
        """
        if not self.is_local or self.is_file():
            yield
            return
        new = not self.exists()
        try:
            os.makedirs(self.full_path, exist_ok=True)
            folder = os.open(self.full_path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"out: {str(self)!r} cannot be written: {error.strerror}") from error
        try:
            _lock(folder, self)
            yield
        finally:
            os.close(folder)
            if new:
                with suppress(OSError):  # unless something was written
                    os.rmdir(self.full_path)

    def map_reads(self, read: Callable[[Item], Result], items: Sequence[Item]) -> builtins.list[Result]:
        """`read(item)` for each item, in order; many at a time on an object store, where waiting is the cost."""
        if self.is_local or len(items) < 2:
            return [read(item) for item in items]
        with ThreadPoolExecutor(min(_REMOTE_READS, len(items))) as pool:
            return list(pool.map(read, items))

    def open(self) -> Any:
        """A random-access pyarrow file; memory-mapped when local."""
        if self.is_local:
            return pa.memory_map(self.full_path)
        return self.filesystem.open_input_file(self.full_path)


def _lock(folder: int, where: Location) -> None:
    """Locks an open folder for as long as it is open. Raises UserError where somebody else has."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"out: another process is writing to {str(where)!r}; wait for it, or give another folder"
        ) from error
    except OSError:  # a file system without locks
        pass


def is_uri(text: str) -> bool:
    """True for scheme://..., and for files of this package."""
    return "://" in text or text.startswith(EMBEDDED)


@lru_cache
def _resolve(root: str) -> tuple[Any, str]:
    if root.startswith(EMBEDDED):
        return fs.LocalFileSystem(), str(
            Path(__file__).parent.parent / "embedded" / root.removeprefix(EMBEDDED)
        )
    try:
        return open_uri(root)
    except UserError as error:
        raise UserError(f"data: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"data: cannot open {str(Location(root))!r}: {redact(first_line(error))}; "
            "allowed: a local path, file://, s3://, gs://, abfs:// or hdfs://"
        ) from error
