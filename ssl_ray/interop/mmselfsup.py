"""Algorithms from MMSelfSup 1.x configs, and state dicts to and from its key names.

Each algorithm is one entry of ALGORITHMS: how its config reads, which keys are named otherwise, which tensors are
laid out otherwise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ssl_ray.errors import UserError, nearest
from ssl_ray.interop.mmselfsup_modules import Config, arguments_of, build_module, type_of
from ssl_ray.interop.weights import MM_VIT, LoadReport, Rename, load_matched, read_state_dict, renamed
from ssl_ray.models import MAE, BaseModel, DataPreprocessor, MoCo, NonLinearNeck, SimCLR

Layout = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]  # (theirs to ours, ours to theirs)


@dataclass(frozen=True)
class Algorithm:
    """One algorithm's correspondence.

    build: model from its config. renames: differing keys of a model; order matters, see `Rename`.
    layouts: by our key. counter: their count of teacher updates, where 0 means that the teacher is still a copy.
    """

    build: Callable[[Config], BaseModel]
    renames: Callable[[BaseModel], tuple[Rename, ...]] = lambda model: ()
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    counter: str | None = None


def from_config(config: Config) -> BaseModel:
    """The model that an MMSelfSup config describes: the whole config, or its `model` dict.

    Raises UserError for an algorithm, module or setting without counterpart here.
    """
    if "type" not in config and "model" in config:
        config = config["model"]
    return _lookup(type_of(config)).build(config)


def load_state_dict(model: BaseModel, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Loads an MMSelfSup state dict (weights, teacher, queue) into a model of the same algorithm.

    Raises UserError if a tensor of the model is missing (BN's batch counters may be) or has another shape.
    """
    entry = _lookup(type(model).__name__)
    renames = entry.renames(model)
    ours = {renamed(key, renames): value for key, value in state_dict.items() if key != entry.counter}
    ours = {key: entry.layouts[key][0](v) if key in entry.layouts else v for key, v in ours.items()}
    own = model.state_dict()
    report = LoadReport(
        matched=tuple(k for k in ours if k in own),
        missing=tuple(k for k in own if k not in ours and not k.endswith("num_batches_tracked")),
        unexpected=tuple(k for k in ours if k not in own),
    )
    load_matched(model, ours, report)
    if entry.counter is not None and state_dict.get(entry.counter, torch.tensor(1)).item() == 0:
        model.teacher.update(model.backbone, model.neck, momentum=0.0)  # type: ignore[operator, union-attr]
    return report


def to_state_dict(model: BaseModel) -> dict[str, Tensor]:
    """The model's state under MMSelfSup's names and layouts, the inverse of `load_state_dict`."""
    entry = _lookup(type(model).__name__)
    theirs: dict[str, Tensor] = {} if entry.counter is None else {entry.counter: torch.tensor(1)}
    for key, value in model.state_dict().items():
        theirs[their_key(model, key)] = entry.layouts[key][1](value) if key in entry.layouts else value
    return theirs


def load_checkpoint(model: BaseModel, path: str | Path) -> LoadReport:
    """Loads an MMSelfSup checkpoint file, {"meta", "state_dict"} or bare, as `load_state_dict` does."""
    return load_state_dict(model, read_state_dict(path))


def their_key(model: BaseModel, key: str) -> str:
    """MMSelfSup's name of the model's parameter or buffer `key`."""
    for rename in reversed(_lookup(type(model).__name__).renames(model)):
        key = rename.to_theirs(key)
    return key


def _lookup(name: str) -> Algorithm:
    if name not in ALGORITHMS:
        raise UserError(f"algorithm {name!r} has no MMSelfSup counterpart here; {nearest(name, ALGORITHMS)}")
    return ALGORITHMS[name]


def _preprocessor(config: Config) -> DataPreprocessor:
    """Mean and std from the 0..255 scale; channels are always RGB here."""
    given = config.get("data_preprocessor") or {"type": "SelfSupDataPreprocessor"}
    scaled = arguments_of(given, {"mean": "mean", "std": "std"}, {"bgr_to_rgb": True})
    return DataPreprocessor(**{k: [x / 255 for x in v] for k, v in scaled.items()})


# Composition of configs, one function per algorithm


def _moco(config: Config) -> MoCo:
    neck = build_module(config["neck"])
    names = {"queue_len": "queue_size", "momentum": "momentum"}
    return MoCo(
        backbone=build_module(config["backbone"]),
        neck=neck,
        head=build_module(config["head"]),  # type: ignore[arg-type]
        data_preprocessor=_preprocessor(config),
        **arguments_of(config, names, {"feat_dim": neck.out_channels}),
    )


def _simclr(config: Config) -> SimCLR:
    return SimCLR(
        backbone=build_module(config["backbone"]),
        neck=build_module(config["neck"]),
        head=build_module(config["head"]),  # type: ignore[arg-type]
        data_preprocessor=_preprocessor(config),
        **arguments_of(config, {}),
    )


def _mae(config: Config) -> MAE:
    return MAE(
        backbone=build_module(config["backbone"]),
        neck=build_module(config["neck"]),
        head=build_module(config["head"]),
        data_preprocessor=_preprocessor(config),
        **arguments_of(config, {}),
    )


# Names and layouts


def _under(prefix: str, renames: tuple[Rename, ...]) -> tuple[Rename, ...]:
    """The same changes of name for a module that sits at `prefix`."""
    return tuple(
        r if r.theirs.startswith(".") else Rename(prefix + r.theirs, prefix + r.ours) for r in renames
    )


def _moco_renames(model: BaseModel) -> tuple[Rename, ...]:
    renames: tuple[Rename, ...] = (
        Rename("encoder_k.module.0.", "teacher.backbone."),
        Rename("encoder_k.module.1.", "teacher.neck."),
        Rename("queue", "queue.rows"),
        Rename("queue_ptr", "queue.pointer"),
    )
    if isinstance(model.neck, NonLinearNeck) and not hasattr(model.neck, "bn0"):
        renames += (Rename(".mlp.0.", ".fc0."), Rename(".mlp.2.", ".fc1."))  # MoCoV2Neck
    return renames


_MAE_RENAMES = (Rename("neck.ln1.", "neck.decoder_norm."), *_under("backbone.", MM_VIT))

_QUEUE_LAYOUTS: Mapping[str, Layout] = {
    "queue.rows": (torch.t, torch.t),
    "queue.pointer": (lambda p: p.reshape(()), lambda p: p.reshape(1)),
}

ALGORITHMS = {
    "MoCo": Algorithm(_moco, _moco_renames, _QUEUE_LAYOUTS, counter="encoder_k.steps"),
    "SimCLR": Algorithm(_simclr),
    "MAE": Algorithm(_mae, lambda model: _MAE_RENAMES),
}
