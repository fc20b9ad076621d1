"""What every image source offers, and the parts of one."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ssl_ray.data.decode import BrokenImage, read_header
from ssl_ray.data.plan import Int64, holdout_permutation
from ssl_ray.errors import UserError

if TYPE_CHECKING:
    from ssl_ray.data.sources.location import Location


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before any image is used.

    image_size: (height, width) in pixels, the median of a few images. digest: stable hash of what the source holds.
    """

    name: str
    num_samples: int
    image_size: tuple[int, int]
    num_classes: int | None
    digest: str
    class_names: tuple[str, ...] | None = None


class Source(Protocol):
    """N encoded images with random access. Small when pickled; files are opened in the process that reads."""

    info: DatasetInfo

    def read(self, indices: Int64) -> list[bytes]:
        """Encoded images in the order of `indices`; an index is a stable position, 0..N-1."""

    def labels(self) -> Int64 | None:
        """(N,) classes, or None for images without labels."""

    def path(self, index: int) -> str:
        """What an error report calls the image."""


@dataclass(frozen=True)
class Unused:
    """A part that is left alone. count: of its images or files, in words, may be empty. uris: what opens them."""

    name: str
    count: str
    uris: "tuple[str | Location, ...]"


@dataclass(frozen=True)
class Dataset:
    """Images to train on, and images held out for evaluation only.

    note: how they were read and held out, may be empty. warnings: what may not be as the user thinks. names: what the
    two parts are called where they lie, may be empty. unused: parts that are left alone.
    """

    train: Source
    val: Source | None
    note: str = ""
    warnings: tuple[str, ...] = ()
    names: tuple[str, str] = ("", "")
    unused: tuple[Unused, ...] = ()

    def tell(self, say: Callable[[str], None], warn: Callable[[str], None], head: str) -> None:
        """Tells the user what this is: after `head` images of each part and classes; the note; the warnings."""
        held_out = (
            "" if self.val is None else _part(self.val.info.num_samples, "images held out", self.names[1])
        )
        unused = ", ".join(f"{part.name} ({part.count})" if part.count else part.name for part in self.unused)
        parts = [
            _part(self.train.info.num_samples, "images to train on", self.names[0]),
            held_out or "none held out",
            *([f"not used: {unused}"] if unused else []),
        ]
        info = self.train.info
        classes = counted("classes", info.class_names or ()) or f"{info.num_classes} classes"
        say(f"{head}: {', '.join(parts)}; {classes if info.num_classes else 'no classes'}")
        if self.note:
            say(self.note)
        for warning in self.warnings:
            warn(warning)


def _part(count: int, what: str, name: str) -> str:
    return f"{count:,} {what}" + (f" ({name})" if name else "")


class Subset:
    """A part of a source: entries start..stop of its own order, or of the fixed holdout order when `shuffled`.

    Nothing of size N is stored: the holdout order is computed entry by entry.
    """

    def __init__(self, source: Source, start: int, stop: int, *, shuffled: bool = False) -> None:
        self.source, self.start, self.stop, self.shuffled = source, start, stop, shuffled
        part = digest(source.info.digest, start, stop, shuffled)
        self.info = replace(source.info, num_samples=stop - start, digest=part)

    def _positions(self, indices: Int64) -> Int64:
        positions = np.asarray(indices, np.int64) + self.start
        return holdout_permutation(self.source.info.num_samples)(positions) if self.shuffled else positions

    def read(self, indices: Int64) -> list[bytes]:
        """As Source.read."""
        return self.source.read(self._positions(indices))

    def labels(self) -> Int64 | None:
        """As Source.labels."""
        labels = self.source.labels()
        return None if labels is None else labels[self._positions(np.arange(self.stop - self.start))]

    def path(self, index: int) -> str:
        """As Source.path."""
        return self.source.path(int(self._positions(np.array([index]))[0]))


def digest(*parts: object) -> str:
    """A hash of values (by their repr) and byte buffers: 32 hex digits."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part if isinstance(part, bytes | memoryview) else repr(part).encode())
        state.update(b"\0")
    return state.hexdigest()


def sample_indices(num_samples: int, count: int = 16) -> Int64:
    """At most `count` indices, spread evenly over 0..num_samples-1."""
    return np.unique(np.linspace(0, num_samples - 1, min(count, num_samples)).astype(np.int64))


def median_size(
    read: Callable[[Int64], list[bytes]], path: Callable[[int], str], indices: Int64
) -> tuple[int, int]:
    """Median (height, width) of some images. Raises UserError when none of them can be read."""
    sizes, broken = [], ""
    for index, data in zip(indices, read(indices), strict=True):
        try:
            sizes.append(read_header(data)[:2])
        except BrokenImage as error:
            broken = broken or f"{path(int(index))}: {error}"
    if not sizes:
        raise UserError(f"data: none of {len(indices)} sampled images can be read; the first is {broken}")
    height, width = np.median(np.array(sizes), axis=0)
    return int(height), int(width)


def class_count(labels: Int64 | None, class_names: Sequence[str] | None) -> int | None:
    """Number of classes, or None without labels."""
    if labels is None:
        return None
    return max(len(class_names or ()), int(labels.max()) + 1)


def counted(noun: str, names: Iterable[str]) -> str:
    """Count, noun and the first few names: `3 files that are not images (a.txt, b.csv, ...)`. Empty for no names."""
    names = list(names)
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {noun} ({shown})" if names else ""
