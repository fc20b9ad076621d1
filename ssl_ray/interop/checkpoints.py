"""Reads a checkpoint of another code base into a backbone of ours, and says what fitted."""

import fnmatch
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError, nearest
from ssl_ray.interop.architecture import Guess, guess_architecture
from ssl_ray.interop.backbone_file import TrainedBackbone
from ssl_ray.interop.official import encoder_of, identify
from ssl_ray.interop.weights import (
    DISPENSABLE,
    LoadReport,
    in_colour,
    load_matched,
    missing_of,
    read_state_dict,
    refuse_non_finite,
    surplus,
    unwrapped,
)
from ssl_ray.spec import Spec


@dataclass(frozen=True)
class Imported:
    """A backbone that was read, and how.

    algorithm: our name of what trained it, if known. guessed: whether the architecture was. assumed: what of it the
    weights did not say. misfits: tensors left out because their shape differs, {ours: (theirs, ours)}. dropped: tensors
    left out as told.
    """

    backbone: TrainedBackbone
    algorithm: str | None
    guessed: bool
    assumed: tuple[str, ...]
    report: LoadReport
    misfits: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dropped: tuple[str, ...]


def import_checkpoint(
    path: Path,
    algorithm: str | None = None,
    architecture: Spec | None = None,
    partial: bool = False,
    drop: Sequence[str] = (),
) -> Imported:
    """Reads the backbone in `path`; whose file it is, and the architecture if not given, is told from its tensors.

    algorithm: whose checkpoint it must be. partial: tensors that are missing or have another shape keep the values a
    fresh backbone has; they are an error otherwise. drop: shell patterns of keys (without `module.`) that are left out,
    as if the file did not have them; a tensor of its backbone that ours has no place for is an error otherwise. Raises
    UserError also if nothing fits, or a pattern matches nothing.
    """
    everything = unwrapped(_read(path))
    try:
        _refuse_channels(architecture)
        dropped = _matching(everything, drop)
        tensors = {k: v for k, v in everything.items() if k not in dropped}
        source = identify(tensors, algorithm)
        algorithm = algorithm or source.algorithm
        entries = encoder_of(source, tensors)
        found = {name: value for name, (_, value) in entries.items()}
        guess = (
            Guess(architecture, ())
            if architecture
            else guess_architecture(found, algorithm, source.small_stem, source.class_token)
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what the file lacks starts alike each time
        module: nn.Module = guess.spec.build()

    own = module.state_dict()
    fitting, misfits = _fitting(
        own, {k: in_colour(k, v, own[k]) if k in own else v for k, v in found.items()}
    )
    report = LoadReport(
        matched=tuple(fitting),
        missing=missing_of(module, found, but=("num_batches_tracked",)),
        unexpected=tuple(k for k in everything if k not in {entries[name][0] for name in fitting}),
    )
    refuse_non_finite(fitting, str(path))
    _refuse(path, guess.spec, report, misfits, surplus.inside(entries, own), partial)
    load_matched(module, fitting, LoadReport(report.matched, (), report.unexpected), str(path))
    backbone = TrainedBackbone(
        guess.spec,
        module.eval(),
        f"{path.name}: {source.name}" + (f", without {', '.join(drop)}" if drop else ""),
        _image_size(guess.spec),
        fresh=(*report.missing, *misfits),
    )
    return Imported(backbone, algorithm, architecture is None, guess.assumed, report, misfits, dropped)


def _refuse_channels(architecture: Spec | None) -> None:
    """Raises UserError for a backbone that was asked for and that no image here would fit."""
    channels = 3 if architecture is None else architecture.kwargs.get("in_channels", 3)
    if channels != 3:
        raise UserError(
            f"backbone: in_channels={channels}, and images here have 3; leave in_channels out, then weights for images "
            "of one channel are spread over three"
        )


def _matching(tensors: Mapping[str, Tensor], patterns: Sequence[str]) -> tuple[str, ...]:
    """The keys that any of the patterns matches. Raises UserError for a pattern that matches none."""
    for pattern in patterns:
        if not fnmatch.filter(tensors, pattern):
            raise UserError(
                f"drop: {pattern!r} matches no tensor; {nearest(pattern, map(surplus.pattern, tensors))}"
            )
    return tuple(k for k in tensors if any(fnmatch.fnmatchcase(k, pattern) for pattern in patterns))


def _fitting(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """What can be loaded, and what cannot because of its shape. Positions of another grid can: they are resized."""
    fitting = {
        k: v for k, v in found.items() if k in own and (v.shape == own[k].shape or _resizable(k, v, own))
    }
    misfits = {
        k: (tuple(v.shape), tuple(own[k].shape)) for k, v in found.items() if k in own and k not in fitting
    }
    return fitting, misfits


def _resizable(key: str, value: Tensor, own: Mapping[str, Tensor]) -> bool:
    if key != "pos_embed" or value.ndim != 3 or value.shape[2] != own[key].shape[2]:
        return False
    return math.isqrt(value.shape[1] - 1) ** 2 == value.shape[1] - 1


def _refuse(
    path: Path,
    spec: Spec,
    report: LoadReport,
    misfits: Mapping[str, Any],
    left: Sequence[str],
    partial: bool,
) -> None:
    """Raises UserError for what makes other features of the backbone than it was trained to give.

    left: keys of tensors of their backbone that ours has no place for.
    """
    if not [k for k in report.matched if not k.endswith("num_batches_tracked")]:
        raise UserError(f"{path}: no tensor fits {spec}; give the --backbone that was trained")
    problems, remedies = [], []
    missing = [key for key in report.missing if not key.endswith(DISPENSABLE)]
    if missing and not partial:
        problems.append(f"{len(missing)} tensors are missing ({', '.join(missing[:3])}, ...)")
    if misfits and not partial:
        name, (theirs, ours) = next(iter(misfits.items()))
        problems.append(f"{len(misfits)} have another shape ({name}: {list(theirs)}, wanted {list(ours)})")
    if problems:
        remedies.append("--partial to leave them untrained")
    if left:
        problems.append(f"it has no place for {surplus.described(left)}")
        remedies.append(
            f"--drop '{surplus.pattern(left[0])}' (one for each kind) for other features than were trained"
        )
    if problems:
        raise UserError(
            f"{path}: not the whole of {spec}: {' and '.join(problems)}; give the --backbone that was trained, or "
            f"{', '.join(remedies)}"
        )


def _image_size(spec: Spec) -> int:
    """Pixels a side that the backbone is built for; 224 for those that take any."""
    size: int = (spec.defaults() | spec.kwargs).get("img_size", 224)
    return size


# Classes of settings that are dicts: torch fills no dict but its own kinds.
_SETTINGS = ("yacs.config.CfgNode", "mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict")


class _Foreign:
    """Stands for an object of a class that is not loaded: what was stored of it is dropped."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _read(path: Path) -> dict[str, Tensor]:
    """`read_state_dict`, also where objects of classes lie beside the tensors (settings in MAE's and SimMIM's files).

    No foreign class is imported and none of its code runs.
    """
    names: list[str] = []
    if path.is_file() and path.suffix != ".safetensors":
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except (
            Exception
        ):  # not a zip file, so torch < 1.6 wrote it, or it is no checkpoint: the reader will say
            names = []
    foreign: list[Any] = [(OrderedDict if name in _SETTINGS else _Foreign, name) for name in names]
    with torch.serialization.safe_globals(foreign):
        return read_state_dict(path)
