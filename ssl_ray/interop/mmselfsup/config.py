"""MMSelfSup 1.x config dicts: settings under our argument names, refused where there is no counterpart."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ssl_ray.errors import UserError, nearest
from ssl_ray.models.preprocessing import DataPreprocessor

Config = Mapping[str, Any]
Readers = dict[str, Callable[[Config], nn.Module]]
"""Their name of a module -> the function that makes ours from its config."""

_PARTS = ("backbone", "neck", "head", "loss", "predictor", "memory_bank", "target_generator")
_NORM_DEFAULTS = {
    "BN": (1e-5, 0.1),
    "BN1d": (1e-5, 0.1),
    "BN2d": (1e-5, 0.1),
    "SyncBN": (1e-5, 0.1),
    "LN": (1e-6, None),
}


def arguments_of(config: Config, names: Mapping[str, str], fixed: Config | None = None) -> dict[str, Any]:
    """The config's values under our argument names.

    names: theirs -> ours. fixed: settings that we know in one value only. Nested modules and initialisation are left
    to the caller. Raises UserError for anything else.
    """
    fixed = {"norm_cfg": None, "init_cfg": None, **(fixed or {})}
    arguments = {}
    for key, value in config.items():
        if key in names:
            arguments[names[key]] = value
        elif key == "norm_cfg":
            _check_norm(config)
        elif key not in fixed and key not in ("type", "init_cfg", "data_preprocessor", *_PARTS):
            known = [*names, *fixed]
            raise UserError(
                f"{config['type']}: setting {key}={value!r} is not known here; {nearest(key, known)}"
            )
        elif fixed.get(key) is not None and _plain(value) != _plain(fixed[key]):
            raise UserError(f"{config['type']}: {key}={value!r} is not supported; only {fixed[key]!r}")
    return arguments


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
    """Mean and std from the 0..255 scale; channels are always RGB here."""
    given = config.get("data_preprocessor") or {"type": "SelfSupDataPreprocessor"}
    scaled = arguments_of(given, {"mean": "mean", "std": "std"}, {"bgr_to_rgb": True})
    return DataPreprocessor(**{k: [x / 255 for x in v] for k, v in scaled.items()})


def _check_norm(config: Config) -> None:
    norm = config["norm_cfg"]
    kind = str(norm.get("type"))
    if kind not in _NORM_DEFAULTS:
        raise UserError(
            f"{config['type']}: norm_cfg type {kind!r} is not supported; {nearest(kind, _NORM_DEFAULTS)}"
        )
    eps, momentum = _NORM_DEFAULTS[kind]
    if norm.get("eps", eps) != eps or norm.get("momentum", momentum) != momentum:
        raise UserError(
            f"{config['type']}: norm_cfg {dict(norm)} is not supported; only eps {eps}, momentum {momentum}"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
