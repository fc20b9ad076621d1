"""MMSelfSup 1.x config dicts: settings under our argument names, refused where there is no counterpart."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from torch import nn

from ssl_ray.errors import UserError, nearest
from ssl_ray.models.preprocessing import DataPreprocessor

Config = Mapping[str, Any]
Readers = dict[str, Callable[[Config], nn.Module]]
"""Their name of a module -> the function that makes ours from its config."""

_PARTS = ("backbone", "neck", "head", "loss", "predictor", "memory_bank", "target_generator")


class Norm(NamedTuple):
    """The normalisation that a module of ours has: names of theirs for it, and its numbers."""

    kinds: tuple[str, ...]
    eps: float
    momentum: float | None = None


BATCH_NORM = Norm(("BN", "BN1d", "BN2d", "SyncBN"), 1e-5, 0.1)
VIT_NORM = Norm(("LN",), 1e-6)
SWIN_NORM = Norm(("LN",), 1e-5)
_EPS = 1e-5  # theirs where `norm_cfg` gives none, of every norm


def arguments_of(
    config: Config,
    names: Mapping[str, str],
    fixed: Config | None = None,
    elsewhere: Collection[str] = (),
    norm: Norm = BATCH_NORM,
) -> dict[str, Any]:
    """The config's values under our argument names.

    names: theirs -> ours. fixed: settings that we know in one value only. elsewhere: settings that the caller reads or
    that change no number. norm: what `norm_cfg` must say. Nested modules are left to the caller, and so is how new
    weights are drawn. Raises UserError for anything else, and for weights that a config wants loaded.
    """
    fixed = fixed or {}
    arguments = {}
    for key, value in config.items():
        if key in names:
            arguments[names[key]] = value
        elif key == "norm_cfg":
            _check_norm(config, norm)
        elif key in ("pretrained", "init_cfg"):
            _check_no_weights(config["type"], value)
        elif key in fixed:
            if _plain(value) != _plain(fixed[key]):
                raise UserError(f"{config['type']}: {key}={value!r} is not supported; only {fixed[key]!r}")
        elif key not in ("type", "data_preprocessor", *_PARTS, *elsewhere):
            known = [*names, *fixed, *elsewhere]
            raise UserError(
                f"{config['type']}: setting {key}={value!r} is not known here; {nearest(key, known)}"
            )
    return arguments


def squared(config: Config, *keys: str) -> Config:
    """The config with a pair of equal numbers at `keys`, as theirs takes for sides, as that number."""
    sides = {key: config[key] for key in keys if isinstance(config.get(key), list | tuple)}
    for key, pair in sides.items():
        if len(set(pair)) != 1:
            raise UserError(f"{config['type']}: {key}={pair!r} is not supported; only squares")
    return {**config, **{key: pair[0] for key, pair in sides.items()}}


def type_of(config: Config) -> str:
    """`type` without scope: "mmselfsup.MoCo" -> "MoCo"."""
    if "type" not in config:
        raise UserError(
            f"config has no 'type'; its keys are {', '.join(config)}; give the dict of one model or module"
        )
    return str(config["type"]).rpartition(".")[2]


def build_module(config: Config, readers: Readers) -> nn.Module:
    """The module that `config` (with its `type`) describes, made by the reader of that name."""
    kind = type_of(config)
    if kind not in readers:
        raise UserError(f"module {kind!r} is not known here; {nearest(kind, readers)}")
    return readers[kind](config)


def build_parts(config: Config, readers: Readers) -> dict[str, Any]:
    """The arguments that every algorithm takes: backbone, neck and head where configured, data_preprocessor."""
    parts = {
        name: build_module(config[name], readers) for name in ("backbone", "neck", "head") if name in config
    }
    return parts | {"data_preprocessor": _preprocessor(config)}


def loss_of(config: Config, readers: Readers) -> nn.Module | None:
    """A head's loss, None where its config has none."""
    return build_module(config["loss"], readers) if "loss" in config else None


def _preprocessor(config: Config) -> DataPreprocessor:
    """Mean and std from the 0..255 scale, ImageNet's where the config has none; channels are always RGB here."""
    given = config.get("data_preprocessor")
    if given is None:
        return DataPreprocessor()
    given = {"type": "SelfSupDataPreprocessor", "bgr_to_rgb": False, **given}
    scaled = arguments_of(given, {"mean": "mean", "std": "std"}, {"bgr_to_rgb": True})
    return DataPreprocessor(**{k: [x / 255 for x in v] for k, v in scaled.items()})


def _check_norm(config: Config, norm: Norm) -> None:
    given = {"eps": _EPS, "requires_grad": True, **config["norm_cfg"]}
    kind = str(given.pop("type", None))
    if kind not in norm.kinds:
        raise UserError(
            f"{config['type']}: norm_cfg type {kind!r} is not supported; {nearest(kind, norm.kinds)}"
        )
    ours = {"eps": norm.eps, "momentum": norm.momentum, "requires_grad": True}
    if given != {name: ours.get(name) for name in given}:
        raise UserError(
            f"{config['type']}: norm_cfg {dict(config['norm_cfg'])} is not supported; only eps {norm.eps}"
            + (f", momentum {norm.momentum}" if norm.momentum is not None else "")
        )


def _check_no_weights(kind: str, value: Any) -> None:
    loads = isinstance(value, str) or (isinstance(value, Mapping) and value.get("type") == "Pretrained")
    if loads:
        weights = value if isinstance(value, str) else value.get("checkpoint")
        raise UserError(
            f"{kind}: weights are not loaded from a config; take {weights!r} out of it and give the file to "
            "load_checkpoint or load_backbone"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
