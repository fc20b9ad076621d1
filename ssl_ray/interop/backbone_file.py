"""A trained backbone in one file: safetensors under our names, and what it takes to build it and feed it.

`pretrained=` takes such a file, `ssl-ray import` and `ssl-ray export` write it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ssl_ray.errors import UserError
from ssl_ray.interop.weights import load_backbone
from ssl_ray.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from ssl_ray.spec import Spec

_KEY = "ssl_ray"  # one entry of the file's metadata, JSON
_FORMAT = 1


@dataclass(frozen=True)
class TrainedBackbone:
    """A backbone with its weights, in evaluation mode.

    architecture: the Spec that builds it. source: in words, where the weights are from. image_size: pixels a side.
    mean, std: what images in [0, 1] are normalised with. fresh: tensors that the source did not have. step: of a run's
    checkpoint, the optimiser steps it had done.
    """

    architecture: Spec
    module: nn.Module
    source: str
    image_size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    fresh: Sequence[str] = ()
    step: int | None = None


def write_backbone(backbone: TrainedBackbone, path: Path) -> None:
    """Writes the file. Raises UserError if it cannot be written."""
    from safetensors.torch import save

    described = {
        "format": _FORMAT,
        "architecture": backbone.architecture.to_json(),
        "source": backbone.source,
        "image_size": backbone.image_size,
        "mean": backbone.mean,
        "std": backbone.std,
        "fresh": backbone.fresh,
    }
    tensors = {k: v.contiguous() for k, v in backbone.module.state_dict().items()}
    try:
        path.write_bytes(save(tensors, {"format": "pt", _KEY: json.dumps(described)}))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; give another --out") from error


def read_backbone(path: Path) -> TrainedBackbone:
    """Reads what `write_backbone` wrote. Raises UserError for any other file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get(_KEY, "{}"))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: no safetensors file ({error})") from error
    except (ValueError, RecursionError):
        described = None
    if not isinstance(described, dict) or described.get("format") != _FORMAT:
        raise UserError(f"{path}: does not say what it holds; `ssl-ray import {path}` makes a file that does")
    architecture = Spec.from_json(described["architecture"], f"{path}: architecture")
    module: nn.Module = architecture.build()
    load_backbone(module, path)
    return TrainedBackbone(
        architecture,
        module.eval(),
        described["source"],
        described["image_size"],
        tuple(described["mean"]),
        tuple(described["std"]),
        tuple(described["fresh"]),
    )
