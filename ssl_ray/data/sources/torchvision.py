"""Data sets of torchvision.datasets, by class name: `torchvision:CIFAR10?root=/data&download=1`."""

import inspect
import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np
from PIL import Image

from ssl_ray.data.plan import Int64
from ssl_ray.data.sources.base import (
    Dataset,
    DatasetInfo,
    Unused,
    class_count,
    digest,
    median_size,
    sample_indices,
)
from ssl_ray.data.sources.layout import TEST, UNLABELLED, VAL, not_trained_on, split_of
from ssl_ray.errors import UserError, nearest

SCHEME = "torchvision:"
Arguments = tuple[tuple[str, str | int | bool], ...]
# The names that torchvision's classes use for the labels of all samples.
_LABELS = ("targets", "labels", "_labels", "y")
_HELD_OUT = ("val", "valid", "validation", "test")


def cache_root() -> str:
    """Where data sets are looked for: $SSL_RAY_CACHE, else ~/.cache/ssl-ray."""
    return os.environ.get("SSL_RAY_CACHE") or str(Path.home() / ".cache" / "ssl-ray")


def open_torchvision(uri: str) -> Dataset:
    """Opens a class of torchvision.datasets; its test or validation split is the held-out part.

    What follows `?` goes to the constructor. Raises UserError for an unknown class or data that is not there.
    """
    name, _, query = uri.removeprefix(SCHEME).partition("?")
    kind = _class(name)
    parameters = _parameters(kind)
    given: dict[str, str | int | bool] = {key: _value(key, text) for key, text in parse_qsl(query)}
    for key in given:
        if key not in parameters:
            raise UserError(
                f"data: torchvision.datasets.{name} has no argument {key!r}; {nearest(key, parameters)}"
            )
    if "root" in parameters:
        given.setdefault("root", cache_root())

    if "train" in parameters and "train" not in given:
        return Dataset(_source(name, given | {"train": True}), _source(name, given | {"train": False}))
    if "split" in parameters and "split" not in given:
        train = _source(name, given | {"split": "train"})
        for split in _HELD_OUT:
            try:
                val = _source(name, given | {"split": split})
            except UserError:
                continue  # Not every set has every split.
            unused = _unused(name, given, split)
            warnings = (
                not_trained_on(part.name, part.uris[0])
                for part in unused
                if split_of(part.name) == UNLABELLED
            )
            return Dataset(train, val, "", tuple(warnings), ("train", split), tuple(unused))
        return Dataset(train, None)
    return Dataset(_source(name, given), None)


def _unused(name: str, given: dict[str, str | int | bool], held_out: str) -> list[Unused]:
    """The splits beside `train` and `held_out`: those that the class names, else what there is of the usual ones."""
    named = getattr(_class(name), "splits", ())
    found = []
    for split in named or _HELD_OUT:
        arguments = {key: value for key, value in given.items() if key != "download"} | {"split": split}
        if split == held_out or split_of(split) not in (VAL, TEST, UNLABELLED):
            continue
        uri = f"{SCHEME}{name}?{urlencode(arguments)}"
        if named:
            found.append(Unused(split, "", (uri,)))
            continue
        try:
            images = len(_build(name, tuple(sorted(arguments.items()))))
        except UserError:
            continue
        found.append(Unused(split, f"{images:,} images", (uri,)))
    return found


def _parameters(kind: Any) -> set[str]:
    """Names of the constructor's arguments, with those that it hands on to its base class."""
    parameters = inspect.signature(kind.__init__).parameters
    names = {name for name, parameter in parameters.items() if parameter.kind != parameter.VAR_KEYWORD} - {
        "self"
    }
    return names if len(names) + 1 == len(parameters) else names | _parameters(kind.__base__)


def _source(name: str, arguments: dict[str, str | int | bool]) -> "TorchvisionSource":
    return TorchvisionSource(name, tuple(sorted(arguments.items())))


def _value(key: str, text: str) -> str | int | bool:
    if key == "download":
        return text.lower() in ("1", "true", "yes")
    return int(text) if text.isdecimal() else text


def _class(name: str) -> Any:
    from torchvision import datasets  # Imports torch, which the other sources do without.

    names = [key for key, value in vars(datasets).items() if inspect.isclass(value)]
    if name not in names:
        raise UserError(f"data: torchvision.datasets has no {name!r}; {nearest(name, names)}")
    return getattr(datasets, name)


class TorchvisionSource:
    """Items of one torchvision data set, as PNG bytes; built in the process that reads, with `arguments`."""

    note = ""

    def __init__(self, name: str, arguments: Arguments) -> None:
        self.name, self.arguments = name, arguments
        dataset = _build(name, arguments)
        num_samples = len(dataset)
        indices = sample_indices(num_samples)
        size = median_size(self.read, self.path, indices)
        names = tuple(map(str, getattr(dataset, "classes", ()))) or None
        content = digest(name, num_samples, *self.read(indices))
        # A worker does not download again, nor race for it.
        self.arguments = tuple((key, value) for key, value in arguments if key != "download")
        classes = class_count(self.labels(), names)
        self.info = DatasetInfo(name, num_samples, size, classes, content, names if classes else None)

    def read(self, indices: Int64) -> list[bytes]:
        """As Source.read. PNG without loss, compressed as little as possible: speed counts here."""
        dataset, blobs = _build(self.name, self.arguments), []
        for index in indices:
            image = dataset[int(index)][0]
            if not isinstance(image, Image.Image):
                raise UserError(
                    f"data: torchvision.datasets.{self.name} gives {type(image).__name__}, not images"
                )
            buffer = io.BytesIO()
            image.save(buffer, "PNG", compress_level=1)
            blobs.append(buffer.getvalue())
        return blobs

    def labels(self) -> Int64 | None:
        """As Source.labels; None when the set has none, or not one class for each image."""
        dataset = _build(self.name, self.arguments)
        for attribute in _LABELS:
            values = getattr(dataset, attribute, None)
            if values is None:
                continue
            labels = np.asarray(values)
            if labels.shape == (len(dataset),) and labels.dtype.kind in "iu" and labels.min() >= 0:
                return labels.astype(np.int64)
        return None

    def path(self, index: int) -> str:
        """As Source.path."""
        return f"torchvision {self.name} {index}"


@lru_cache(maxsize=4)
def _build(name: str, arguments: Arguments) -> Any:
    try:
        return _class(name)(**dict(arguments))
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments)
        raise UserError(
            f"data: torchvision.datasets.{name}({shown}): {' '.join(str(error).split())}; "
            f"give {SCHEME}{name}?root=/path, with &download=1 to fetch it"
        ) from error
