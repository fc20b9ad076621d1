"""Loads a backbone from torchvision, timm, MMSelfSup or an algorithm's official checkpoint.

A load that silently loads nothing is the classic mistake here: everything that matters must match, or it is an error.
"""

import logging
import re
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError, nearest
from ssl_ray.interop.weights import surplus
from ssl_ray.interop.weights.names import Entries, in_our_names
from ssl_ray.redact import redact

logger = logging.getLogger(__name__)

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
    "_feature_blocks.",
)
# Ends of keys that a backbone can do without, for no feature of an image depends on them: they start anew.
DISPENSABLE = ("num_batches_tracked", "mask_token")
# Beginning of keys whose numbers are known where a file has none of them.
_SOBEL = "sobel."
# Keys under which files hold the state dict, from the outside in; VISSL's has three around it. DINO and its successors
# keep a student and a teacher: the teacher is what they publish and evaluate.
CONTAINERS = (
    "classy_state_dict",
    "base_model",
    "state_dict",
    "model_state_dict",
    "model",
    "algorithm",
    "trunk",
    "teacher",
)
# The first layer's weights, whose second axis is the channels of the images.
_STEMS = ("conv1.weight", "patch_embed.proj.weight")


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

    Known prefixes (`module.`, `backbone.`, `encoder_q.`, ...) and the names that `names` knows are understood; what
    belongs to necks, heads and momentum encoders is not used. Raises UserError unless every tensor of the backbone is
    found with its shape (those of `DISPENSABLE` may be missing) and finite; if the source's backbone has tensors that
    ours lacks; or if two copies of the backbone in the source disagree.
    """
    origin = "weights" if isinstance(source, Mapping) else str(source)
    theirs = source if isinstance(source, Mapping) else read_state_dict(source)
    theirs = unwrapped(theirs)
    own = backbone.state_dict()

    found = [entries_at(prefix, theirs) for prefix in PREFIXES]
    candidates = [{k: entry for k, entry in entries.items() if k in own} for entries in found]
    best = max(candidates, key=len)
    refuse_non_finite(dict(best.values()), origin)  # a NaN is not equal to itself: before copies are compared
    for other in candidates:
        if len(other) == len(best) and any(not torch.equal(other[k][1], best[k][1]) for k in other):
            a, b = (next(iter(c.values()))[0] for c in (best, other))
            raise UserError(
                f"{origin}: {a!r} and {b!r} belong to two different encoders; keep one in the file"
            )

    name = type(backbone).__name__
    if not best:
        raise UserError(
            f"{origin}: no tensor fits {name}; the source has {_some(theirs)}, {name} wants {_some(own)}; "
            "choose weights of the same architecture"
        )
    if left := surplus.inside(found[candidates.index(best)], own):
        raise UserError(
            f"{origin}: {name} has no place for {surplus.described(left)}: without it the features would not be "
            f"those of the trained network; `ssl-ray import --drop '{surplus.pattern(left[0])}'` makes a file without"
        )
    used = {key for key, _ in best.values()}
    report = LoadReport(tuple(best), missing_of(backbone, best), tuple(k for k in theirs if k not in used))
    tensors = {k: in_colour(k, v, own[k]) for k, (_, v) in best.items()}
    load_matched(backbone, tensors, report, origin)
    return report


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what DistributedDataParallel and `torch.compile` put before their names."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in tensors.items()}


def entries_at(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """The tensors under `prefix` in a file, under our names: {ours: (their key, value in our layout)}.

    Sobel filters stand beside the backbone in older versions of MMSelfSup.
    """
    beginnings = (prefix, "sobel_layer.") if prefix else ("",)
    inside = {k.removeprefix(prefix): (k, v) for k, v in tensors.items() if k.startswith(beginnings)}
    return in_our_names(inside)


def missing_of(
    module: nn.Module, found: Entries | Mapping[str, Tensor], but: tuple[str, ...] = DISPENSABLE
) -> tuple[str, ...]:
    """The tensors of `module` that are not in `found`, without those that end with one of `but` or need no file."""
    known = () if any(name.startswith(_SOBEL) for name in found) else (_SOBEL,)
    return tuple(
        k for k in module.state_dict() if k not in found and not (k.endswith(but) or k.startswith(known))
    )


def in_colour(name: str, value: Tensor, own: Tensor) -> Tensor:
    """Weights for images of one channel as weights for three, if that is what ours (`own`) takes.

    A third for each: of a gray image three times over they make what the source's make of it once.
    """
    if name not in _STEMS or value.ndim != 4 or (value.shape[1], own.shape[1]) != (1, 3):
        return value
    logger.warning(
        "%s: made for images of one channel, spread over three, a third each: gray images give the same features",
        name,
    )
    return value.expand(-1, 3, -1, -1) / 3


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
    tensors = _tensors(_unpacked(content))
    if not tensors:
        raise UserError(
            f"{path}: holds no state dict; looked at the top and under {', '.join(CONTAINERS)}; {_top(content)}; "
            "save the backbone's state_dict alone"
        )
    return tensors


def _unpacked(content: Any) -> Any:
    """What lies in the containers of a file; without a known one, the only dict of tensors in it."""
    for container in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
    if isinstance(content, Mapping) and not any(value.ndim for value in _tensors(content).values()):
        inner = [value for value in content.values() if _tensors(value)]
        return inner[0] if len(inner) == 1 else content
    return content


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    return {
        key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }


def _top(content: Any) -> str:
    """What a file has at its top, in words."""
    if not isinstance(content, Mapping):
        return f"it is of type {type(content).__name__}"
    said = [f"{k} (a dict of {len(v)})" if isinstance(v, Mapping) else str(k) for k, v in content.items()]
    return f"at its top are {_some(said, 12)}" if said else "it is empty"


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


def groups(names: Iterable[str]) -> str:
    """Names by the part they begin with: "features (52 tensors), classifier (6)"."""
    counts = Counter(name.partition(".")[0] for name in names)
    said = [f"{first} ({n} tensors)" if n > 1 else first for first, n in counts.items()]
    return _some(said, 12)


def _some(names: Iterable[str], count: int = 3) -> str:
    """The first few of many names."""
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
