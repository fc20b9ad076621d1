"""Recipe: everything that decides what a run computes, as one frozen value that round-trips through JSON."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field

from ssl_ray.checks import REQUIRED, at, check, signature
from ssl_ray.errors import UserError
from ssl_ray.paths import parse_value, replace_at
from ssl_ray.ranges import Count, Fraction, NotNegative, Positive, Seed, Share
from ssl_ray.spec import Spec

FORMAT = 1
"""Version of the JSON form; counted up when an older reader would misread it."""

_S = TypeVar("_S", bound="_Section")


@dataclass(frozen=True, kw_only=True)
class _Section:
    """Checks every field against its annotation, so that a wrong value is one line at the place where it is written."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, check(type(self), f.name, getattr(self, f.name)))


@dataclass(frozen=True, kw_only=True)
class Paper(_Section):
    """Where the recipe comes from, and what it reached there."""

    title: str
    arxiv: str
    year: int
    result: str


@dataclass(frozen=True, kw_only=True)
class Optimization(_Section):
    """The optimiser and the course of its learning rate.

    optimizer: Spec of SGD, AdamW, LARS, ... without its lr. base_lr: per 256 samples of the global batch; lr: what the
    optimiser gets, None until resolved as base_lr * global batch / 256. warmup_start and final_lr: see
    `training.schedules`; the former is a factor of lr, the latter a rate. milestones: in epochs, for schedule "step".
    """

    optimizer: Spec
    base_lr: Positive
    lr: Positive | None = None
    warmup_epochs: NotNegative = 0
    warmup_start: Fraction = 1e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    final_lr: NotNegative = 0.0
    milestones: tuple[Count, ...] = ()
    gamma: Share = 0.1
    clip_grad_norm: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if "lr" in self.optimizer.kwargs:
            raise UserError(f"{self.optimizer!r}: no lr here; set optimization.base_lr (or optimization.lr)")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UserError(f"Optimization.milestones = {self.milestones}: should grow from one to the next")


@dataclass(frozen=True, kw_only=True)
class Training(_Section):
    """How long, how many at a time, and how the arithmetic is done.

    accumulate: micro-batches per optimiser step. max_rows: of the batch that a worker takes at once at most; where its
    share is larger there are more micro-batches, and batch norm and losses among a batch's rows see smaller ones.
    max_steps: stop early, schedules unchanged. checkpoint_steps and checkpoint_minutes: whichever comes first, None
    switches one off. hang_minutes: a worker whose step takes longer is taken for hung, and started again.
    """

    epochs: Count
    global_batch_size: Count
    accumulate: Count = 1
    max_rows: Count | None = None
    max_steps: Count | None = None
    seed: Seed = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    channels_last: bool = False
    sync_bn: bool = True
    checkpoint_steps: Count | None = None
    checkpoint_minutes: Positive | None = 10.0
    keep_checkpoints: Count = 2
    max_nonfinite_steps: Count = 3
    hang_minutes: Positive | None = 10.0
    log_steps: Count = 10


@dataclass(frozen=True, kw_only=True)
class Evaluation(_Section):
    """What is measured while a run trains: every so many epochs (None: never), on held-out images.

    k and temperature are kNN's; kNN and the linear probe learn from at most `max_samples` training images. Each flag
    from `knn` to `clusters` switches one monitor; those of labels are off where there are none, `clusters` where the
    algorithm has none. Alignment and LiDAR see `view_images` images in augmented views: two of each, LiDAR lidar_views.
    on_collapse: what an alarm does, which std, top_direction and clusters can raise.
    """

    every_epochs: Count | None = 1
    k: Count = 20
    temperature: Positive = 0.07
    max_samples: Count = 50000
    knn: bool = True
    linear_probe: bool = True
    std: bool = True
    rankme: bool = True
    top_direction: bool = True
    alpha_req: bool = True
    uniformity: bool = True
    alignment: bool = False
    lidar: bool = False
    clusters: bool = True
    view_images: Annotated[int, Field(ge=2)] = 1000
    lidar_views: Annotated[int, Field(ge=2, le=1000)] = 10
    on_collapse: Literal["warn", "stop"] = "warn"

    @property
    def monitors(self) -> frozenset[str]:
        """Names of those switched on."""
        flags = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return frozenset(name for name, on in flags.items() if on is True)


@dataclass(frozen=True, kw_only=True)
class DataOptions(_Section):
    """max_broken: share of unreadable images above which the run stops."""

    max_broken: Fraction = 0.01


@dataclass(frozen=True, kw_only=True)
class Recipe(_Section):
    """One run, except for the data set and the machines."""

    name: str
    paper: Paper
    algorithm: Spec
    views: Spec
    optimization: Optimization
    training: Training
    evaluation: Evaluation = field(default_factory=Evaluation)
    data: DataOptions = field(default_factory=DataOptions)

    @property
    def untrained(self) -> Spec:
        """The algorithm without the weights that it begins with: a checkpoint, which is loaded into it, has its own."""
        given = "pretrained" in self.algorithm.kwargs
        return self.algorithm.replace(pretrained=None) if given else self.algorithm

    def to_json(self) -> dict[str, Any]:
        """A dict ready for `json.dumps`, with the version of its form under "format"."""
        return {"format": FORMAT} | _json(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The Recipe that `to_json` wrote; fields left out take their default. Raises UserError for any other."""
        if data.get("format") != FORMAT:
            raise UserError(
                f"recipe: format {data.get('format')!r} is not {FORMAT}, the one this version reads"
            )
        return _read(cls, {name: value for name, value in data.items() if name != "format"})


def override(recipe: Recipe, path: str, value: Any) -> Recipe:
    """A copy with `value` at a dotted path such as "algorithm.head.temperature". See `overrides`."""
    return overrides(recipe, {path: value})


def overrides(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A copy with several values changed: what `--set`, Tune and tests go through.

    Paths lead through fields and arguments, those left at their default included. lr follows from base_lr and the
    global batch: changing one of these without naming lr makes a resolved recipe's lr open again. Raises UserError with
    the whole path and the nearest match.
    """
    if "optimization.lr" not in values and values.keys() & {
        "optimization.base_lr",
        "training.global_batch_size",
    }:
        values = {"optimization.lr": None, **values}
    for path, value in values.items():
        recipe = replace_at(recipe, path, value)
    return recipe


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """`["training.epochs=5", ...]`, as typed after `--set`, for `overrides`. Raises UserError."""
    values: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise UserError(f"--set {text!r}: write path=value, such as training.epochs=5")
        values[path.strip()] = parse_value(value)
    return values


def _read(section: Callable[..., _S], data: Mapping[str, Any], path: str = "") -> _S:
    """One section from its JSON form."""
    known = signature(section)
    values: dict[str, Any] = {}
    for name, value in data.items():
        wanted = known.annotations.get(name)
        if wanted is Spec and isinstance(value, Mapping) and "type" in value:
            values[name] = Spec.from_json(value, f"{path}{name}")
        elif isinstance(wanted, type) and issubclass(wanted, _Section) and isinstance(value, Mapping):
            values[name] = _read(wanted, value, f"{path}{name}.")
        else:
            with _told_at(path, section):
                values[name] = check(section, name, value)
    if missing := [n for n, default in known.defaults.items() if default is REQUIRED and n not in values]:
        raise UserError(f"{section.__name__}: missing {', '.join(map(repr, missing))}")
    with _told_at(path, section):
        return section(**values)


@contextlib.contextmanager
def _told_at(path: str, section: Callable[..., Any]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise at(path.removesuffix("."), section.__name__, error) if path else error from error


def _json(section: Any) -> dict[str, Any]:
    return {f.name: _json_value(getattr(section, f.name)) for f in dataclasses.fields(section)}


def _json_value(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_json()
    if isinstance(value, _Section):
        return _json(value)
    return list(value) if isinstance(value, tuple) else value
