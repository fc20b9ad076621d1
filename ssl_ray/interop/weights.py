"""Loads a backbone from torchvision, timm, MMSelfSup or an algorithm's official checkpoint.

A load that silently loads nothing is the classic mistake here: everything that matters must match, or it is an error.
"""

import logging
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError, nearest
from ssl_ray.redact import redact

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# Where code bases put the network that learns; momentum encoders are left out on purpose. Ties go to the first.
PREFIXES = (
    "",
    "backbone.",
    "encoder_q.",
    "encoder_q.0.",
    "base_encoder.",
    "base_encoder.0.",
    "online_net.0.",
    "encoder.",
    "encoder.0.",
    "model.",
    "model.backbone.",
)
# Ends of keys that a backbone can do without, for no feature of an image depends on them: they start anew.
DISPENSABLE = ("num_batches_tracked", "mask_token")
# Keys under which files hold the state dict.
CONTAINERS = ("state_dict", "model", "algorithm")


class Rename(NamedTuple):
    """One change of name between another code base's state dict and ours.

    A name that begins with a dot stands anywhere in a key, one that ends with a dot at its beginning, any other is
    the whole key.
    """

    theirs: str
    ours: str

    def to_ours(self, key: str) -> str:
        """Our name of their `key`."""
        return _substitute(key, self.theirs, self.ours)

    def to_theirs(self, key: str) -> str:
        """Their name of our `key`."""
        return _substitute(key, self.ours, self.theirs)


def _substitute(key: str, old: str, new: str) -> str:
    if old.startswith("."):
        return key.replace(old, new, 1)
    if old.endswith("."):
        return new + key.removeprefix(old) if key.startswith(old) else key
    return new if key == old else key


# MMSelfSup's names for a Vision Transformer; ours are timm's. The final norm comes first: it, too, is called ln1.
MM_VIT = (
    Rename("ln1.", "norm."),
    Rename("patch_embed.projection.", "patch_embed.proj."),
    Rename("layers.", "blocks."),
    Rename(".ln1.", ".norm1."),
    Rename(".ln2.", ".norm2."),
    Rename(".ffn.layers.0.0.", ".mlp.fc1."),
    Rename(".ffn.layers.1.", ".mlp.fc2."),
)

# MMSelfSup's names for a Swin Transformer; ours are the authors'. There the last norm has its stage's number.
MM_SWIN = (
    Rename("patch_embed.projection.", "patch_embed.proj."),
    Rename("stages.", "layers."),
    Rename(".attn.w_msa.", ".attn."),
    Rename(".ffn.layers.0.0.", ".mlp.fc1."),
    Rename(".ffn.layers.1.", ".mlp.fc2."),
)
_MM_SWIN_BACKBONE = (*(Rename(f"norm{i}.", "norm.") for i in range(8)), *MM_SWIN)


def merging_moved(key: str, stages: int) -> str:
    """A Swin Transformer's key, with the merging of patches in a later stage (or earlier, `stages` < 0).

    Newer timm begins a stage with the merging that ours, the authors' and older timm's end the stage before with.
    """
    layers, downsample, rest = key.partition(".downsample.")
    number = layers.removeprefix("layers.")
    return f"layers.{int(number) + stages}{downsample}{rest}" if downsample and number.isdecimal() else key


def merging_at_end(entries: Mapping[str, _T]) -> dict[str, _T]:
    """A Swin Transformer's entries with its mergings where ours are, wherever theirs were; all others as they are."""
    begins = "layers.1.downsample.reduction.weight" in entries
    ends = "layers.0.downsample.reduction.weight" in entries
    return {merging_moved(key, -1) if begins and not ends else key: entry for key, entry in entries.items()}


def merging_from_mm(weights: Tensor) -> Tensor:
    """MMSelfSup's order of the 4C inputs of a patch merging (channel, row, column) as (column, row, channel)."""
    return weights.reshape(*weights.shape[:-1], -1, 2, 2).transpose(-3, -1).flatten(-3)


def merging_to_mm(weights: Tensor) -> Tensor:
    """The inverse of `merging_from_mm`."""
    return weights.reshape(*weights.shape[:-1], 2, 2, -1).transpose(-3, -1).flatten(-3)


@dataclass(frozen=True)
class LoadReport:
    """What a load did: names of ours that were loaded or not, and names in the source that were not used."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.matched)} tensors loaded, {len(self.missing)} missing, {len(self.unexpected)} not used"


def load_backbone(backbone: nn.Module, source: str | Path | Mapping[str, Tensor]) -> LoadReport:
    """Loads all of `backbone`'s weights from `source`, a file, torchvision name (see `read_state_dict`) or state dict.

    Known prefixes (`module.`, `backbone.`, `encoder_q.`, ...), MMSelfSup's ViT and Swin names and both of timm's for
    Swin are understood; what belongs to necks, heads and momentum encoders is not used. Raises UserError unless every
    tensor of the backbone is found with its shape (those of `DISPENSABLE` may be missing) and finite, or if two copies
    of the backbone in the source disagree.
    """
    origin = "weights" if isinstance(source, Mapping) else str(source)
    theirs = source if isinstance(source, Mapping) else read_state_dict(source)
    theirs = {key.removeprefix("module."): value for key, value in theirs.items()}
    own = backbone.state_dict()

    candidates = []
    for prefix in PREFIXES:
        inside = {k.removeprefix(prefix): (k, v) for k, v in theirs.items() if k.startswith(prefix)}
        inside = {name: (k, _our_layout(name, v)) for name, (k, v) in merging_at_end(inside).items()}
        for renames in ((), MM_VIT, _MM_SWIN_BACKBONE):
            found = {renamed(k, renames): entry for k, entry in inside.items()}
            candidates.append({k: entry for k, entry in found.items() if k in own})
    best = max(candidates, key=len)
    refuse_non_finite(dict(best.values()), origin)  # a NaN is not equal to itself: before copies are compared
    for other in candidates:
        if len(other) == len(best) and any(not torch.equal(other[k][1], best[k][1]) for k in other):
            a, b = (next(iter(c.values()))[0] for c in (best, other))
            raise UserError(
                f"{origin}: {a!r} and {b!r} belong to two different encoders; keep one in the file"
            )

    missing = tuple(k for k in own if k not in best and not k.endswith(DISPENSABLE))
    used = {key for key, _ in best.values()}
    report = LoadReport(tuple(best), missing, tuple(k for k in theirs if k not in used))
    name = type(backbone).__name__
    if not best:
        raise UserError(
            f"{origin}: no tensor fits {name}; the source has {_some(theirs)}, {name} wants {_some(own)}; "
            "choose weights of the same architecture"
        )
    load_matched(backbone, {k: v for k, (_, v) in best.items()}, report, origin)
    return report


def load_matched(
    module: nn.Module, tensors: Mapping[str, Tensor], report: LoadReport, origin: str = "weights"
) -> None:
    """Loads `tensors` into `module`; raises UserError if the report lists missing ones or a shape differs."""
    name = type(module).__name__
    if report.missing:
        raise UserError(
            f"{origin}: {len(report.missing)} tensors of {name} are missing: {_some(report.missing)}; "
            "choose weights of the same architecture"
        )
    try:
        module.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{origin}: shapes differ from {name}'s: {reason}") from error
    logger.info("%s -> %s: %s", origin, name, report)


def refuse_non_finite(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raises UserError naming the first of `tensors` that holds NaN or an infinite value."""
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise UserError(
                f"{origin}: {name} holds non-finite values: the training that wrote it had failed; choose an earlier "
                "checkpoint"
            )


def read_state_dict(source: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a file (.pt, .pth, .safetensors) or of e.g. "torchvision:ResNet50_Weights.IMAGENET1K_V2".

    A file may be a path or a URI that pyarrow reads (s3://..., gs://...). Checkpoints that hold the state dict under
    `state_dict`, `model` or `algorithm` are unpacked. Files are read with `weights_only=True`: nothing in them is
    executed. Raises UserError if there is no such thing, or no tensor in it.
    """
    if str(source).startswith("torchvision:"):
        return _torchvision(str(source).removeprefix("torchvision:"))
    if "://" in str(source):
        with tempfile.TemporaryDirectory() as directory:
            return read_state_dict(_fetched(str(source), directory))
    path = Path(source)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give a path to weights or 'torchvision:ResNet50_Weights.DEFAULT'"
        )
    content: Any = _safetensors(path) if path.suffix == ".safetensors" else load_plain(path)
    for container in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
    tensors = (
        {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    )
    if not tensors:
        raise UserError(f"{path}: holds no state dict; looked at the top and under {', '.join(CONTAINERS)}")
    return tensors


def load_plain(path: Path, device: torch.device | str = "cpu") -> Any:
    """What `torch.save` wrote, if it is tensors and plain values; nothing in the file is executed.

    Raises UserError for any other file; also for one whose parts are compressed: torch never writes such, and a small
    one could unpack to more than the memory holds.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as parts:
                if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                    raise UserError(
                        f"{path}: its parts are compressed, as torch never writes them; it is not read"
                    )
        with warnings.catch_warnings(action="ignore"):  # about pickles that are refused next
            return torch.load(path, map_location=device, weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise _unreadable(str(path), error) from error
    except Exception as error:  # what torch raises for a file of another kind depends on its bytes
        raise UserError(
            f"{path}: not a file of plain tensors, and others are not read because they can run code; "
            "save its state_dict alone with torch.save"
        ) from error


def renamed(key: str, renames: Sequence[Rename]) -> str:
    """Our name of another code base's `key`."""
    for rename in renames:
        key = rename.to_ours(key)
    return key


def _our_layout(key: str, value: Tensor) -> Tensor:
    """What MMSelfSup's Swin Transformer orders otherwise, in our order; everything else as it is."""
    return merging_from_mm(value) if key.startswith("stages.") and ".downsample." in key else value


def _torchvision(name: str) -> dict[str, Tensor]:
    from torchvision import models

    try:
        weights = models.get_weight(name)
    except (ValueError, KeyError) as error:
        known = [str(w) for m in models.list_models() for w in models.get_model_weights(m)]
        raise UserError(
            f"torchvision:{name}: torchvision has no such weights; {nearest(name, known)}"
        ) from error
    try:
        state_dict: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except OSError as error:
        raise _unreadable(f"torchvision:{name}", error) from error
    return state_dict


def _fetched(uri: str, directory: str) -> Path:
    """A file at a URI, copied into a local folder."""
    from pyarrow import fs

    from ssl_ray.filesystems import open_uri

    name = uri.partition("?")[0].rpartition("/")[2]
    try:
        filesystem, path = open_uri(uri)
        fs.copy_files(path, f"{directory}/{name}", source_filesystem=filesystem)
    except (OSError, ValueError) as error:
        raise _unreadable(uri, error) from error
    return Path(directory, name)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError  # type: ignore[import-not-found, unused-ignore]
        from safetensors.torch import load_file  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise UserError(
            f"{path}: reading it needs a package that is not here; pip install safetensors"
        ) from error
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(str(path), error) from error
    return tensors


def _unreadable(source: str, error: Exception) -> UserError:
    return UserError(redact(f"{source}: cannot be read ({error}); choose another file"))


def _some(names: Sequence[str] | Mapping[str, Any]) -> str:
    """The first few of many names."""
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
