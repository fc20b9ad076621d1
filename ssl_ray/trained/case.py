"""What a protocol judges: a subject on a labelled data set, with features that are made when asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from ssl_ray.console import Console
from ssl_ray.data.source import Dataset, Source
from ssl_ray.data.sources.torchvision import cache_root
from ssl_ray.errors import UserError
from ssl_ray.evaluation.features import Broken, Extraction, Features, extract, read_cache, write_cache
from ssl_ray.evaluation.unit import count_not_finite
from ssl_ray.trained.subject import Subject
from ssl_ray.training import cluster, reach


@dataclass(frozen=True)
class Means:
    """What the cluster gives. cache: read and write features kept in files."""

    address: str | None = None
    actors: int | None = None
    gpus_per_actor: float | None = None
    batch_size: int | None = None
    cache: bool = True
    verbose: bool = False


@dataclass(frozen=True)
class FineTuning:
    """How to fine-tune. labels: see `data.labels.LabelBudget`; settings: "path=value" for its recipe."""

    labels: tuple[str, ...] = ("100%",)
    from_scratch: bool = False
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choices:
    """Settings of protocols. seed: of every draw and initialisation. probe: "auto", or how to train linear heads."""

    ks: tuple[int, ...] = (10, 20, 100, 200)
    temperatures: tuple[float, ...] = (0.07, 0.1)
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    draws: int = 5
    probe: str = "auto"
    seed: int = 0
    finetuning: FineTuning = field(default_factory=FineTuning)


@dataclass(frozen=True)
class Part:
    """Features (n, D) float32 and labels (n,) int64 of the images that could be decoded."""

    features: Tensor
    labels: Tensor


@dataclass
class Case:
    """A subject, a data set whose both parts have labels, and the means; a context manager that leaves the cluster.

    data, storage: the data set's name, and where runs are kept, as the user gave them. mlflow_run_id: where results go.
    broken: of the parts looked at, what could not be decoded. cached: which parts' features were kept before.
    meanwhile: called when the cluster has been joined, to do in this process what there is to do.
    """

    subject: Subject
    dataset: Dataset
    size: int
    means: Means
    choices: Choices
    console: Console
    data: str = ""
    storage: str = "runs"
    mlflow_run_id: str | None = None
    meanwhile: Callable[[], object] = lambda: None
    broken: dict[str, list[Broken]] = field(default_factory=dict)
    cached: dict[str, bool] = field(default_factory=dict)
    _connected: bool = False

    @property
    def classes(self) -> int:
        """How many; of the training part, which is all that a protocol learns from."""
        assert self.dataset.train.info.num_classes is not None
        return self.dataset.train.info.num_classes

    @cached_property
    def device(self) -> torch.device:
        """Where probes are trained: a GPU of this machine, else its CPU."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def train(self) -> Part:
        """What protocols learn from, and choose by."""
        return self._part("train", self.dataset.train)

    @cached_property
    def val(self) -> Part:
        """What they are judged on, once."""
        return self._part("val", self.held_out)

    @property
    def held_out(self) -> Source:
        """The images of `val`."""
        assert self.dataset.val is not None
        return self.dataset.val

    def connect(self) -> None:
        """Joins or starts the cluster, once."""
        if not self._connected:
            record = self.subject.folder.record() if self.subject.folder else {}
            cluster.connect(
                self.means.address,
                verbose=self.means.verbose,
                python_path=record.get("python_path", ()),
                actor_pool=True,
            )
            self._connected = True
            reach.require(self.console.warn, images=(self.dataset.train, self.dataset.val))
            self.meanwhile()

    def disconnect(self) -> None:
        """Leaves the cluster, if it was joined."""
        if self._connected:
            cluster.disconnect()
            self._connected = False

    def _part(self, name: str, source: Source) -> Part:
        found = self._features[name]
        labels = source.labels()
        assert labels is not None
        if found.broken:
            self.broken[name] = list(found.broken)
            shown = "; ".join(f"{path} ({reason})" for _, path, reason in found.broken[:5])
            more = f"; and {len(found.broken) - 5} more" if len(found.broken) > 5 else ""
            self.console.warn(
                f"{len(found.broken)} of {source.info.num_samples} {name} images cannot be decoded and are left out: "
                f"{shown}{more}"
            )
        lost, images = count_not_finite(found.features)
        if lost:
            raise UserError(
                f"features: those of {lost} of {images} {name} images are not finite ({self.subject.source}): the "
                "network has diverged, they have no accuracy; evaluate an earlier checkpoint, or train with a lower lr"
            )
        return Part(found.features, torch.from_numpy(labels)[found.index])

    @cached_property
    def _features(self) -> dict[str, Features]:
        """Of both parts: as kept before, and what is not by one pool of actors."""
        found: dict[str, Features] = {}
        left: dict[str, Extraction] = {}
        weights = self.subject.weights
        for name, source in (("train", self.dataset.train), ("val", self.held_out)):
            extraction = Extraction(self.subject.encoder, weights, source, self.size, self.means.batch_size)
            path = self._cache(extraction)
            kept = read_cache(path) if self.means.cache else None
            self.cached[name] = kept is not None
            if kept is not None:
                self.console.print(f"features of {name}: {len(kept.index):,}, read from {path}")
                found[name] = kept
                continue
            if self.means.cache and path.exists():
                self.console.warn(f"{path} is not whole; its features are computed again")
            left[name] = extraction
        if not left:
            return found
        self.connect()
        with self.console.task(f"features of {' and '.join(left)}") as on_progress:
            made = extract(
                list(left.values()),
                actors=self.means.actors,
                gpus_per_actor=self.means.gpus_per_actor,
                on_progress=on_progress,
            )
        found |= dict(zip(left, made, strict=True))
        for name, extraction in left.items() if self.means.cache else ():
            path = self._cache(extraction)
            try:
                write_cache(path, found[name])
            except OSError as error:
                self.console.warn(f"features are not kept: {path} cannot be written ({error.strerror})")
        return found

    def _cache(self, extraction: Extraction) -> Path:
        return cache_folder(self.subject) / f"{extraction.key}.safetensors"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()


def cache_folder(subject: Subject) -> Path:
    """Where a subject's features are kept: in its run's folder, else where data sets are ($SSL_RAY_CACHE)."""
    local = subject.folder.local if subject.folder else None
    return (local or Path(cache_root())) / "features"


def described(subject: Subject) -> dict[str, Any]:
    """What JSON says of a subject."""
    return {
        "subject": subject.name,
        "source": subject.source,
        "step": subject.step,
        "run": subject.folder.uri if subject.folder else None,
    }
