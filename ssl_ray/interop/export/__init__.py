"""A trained backbone as a file for others, loaded back and compared before it is called done.

Each format is an entry of FORMATS.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch

from ssl_ray.errors import UserError, nearest
from ssl_ray.interop.backbone_file import TrainedBackbone
from ssl_ray.interop.export import graphs, ours, timm_models, torchvision_models
from ssl_ray.interop.export.format import Format, image_shape
from ssl_ray.models.encoder import pooled

FORMATS: dict[str, Format] = {
    "torchvision": torchvision_models.FORMAT,
    "timm": timm_models.FORMAT,
    "safetensors": ours.FORMAT,
    "onnx": graphs.ONNX,
    "torchscript": graphs.TORCHSCRIPT,
}

TOLERANCE = 1e-4
# Not the batch that a graph is recorded with: that it takes another is part of the proof.
_IMAGES = 3


class Exported(NamedTuple):
    """What was written and proved.

    difference: largest absolute one between our features and those of the file, on random images; scale: the largest
    absolute feature. usage: a line of Python that loads the file.
    """

    path: Path
    difference: float
    scale: float
    usage: str


def format_of(name: str) -> Format:
    """The format called `name`. Raises UserError."""
    if name not in FORMATS:
        raise UserError(f"format: {name!r} is not known; {nearest(name, FORMATS)}")
    return FORMATS[name]


def export(backbone: TrainedBackbone, name: str, path: Path) -> Exported:
    """Writes `backbone` in format `name` to `path`, which appears only after the proof.

    Raises UserError if the format has no place for such a backbone, a package is missing, or the features of the file
    differ from ours by more than 1e-4 (times the largest feature, where that is above 1).
    """
    chosen = format_of(name)
    if reason := chosen.refusal(backbone):
        others = ", ".join(n for n, other in FORMATS.items() if not other.refusal(backbone))
        raise UserError(
            f"format: {name} cannot hold {backbone.architecture}: {reason}; formats that can: {others}"
        )
    draft = path.with_name(f".{path.name}.draft{chosen.suffix}")
    try:
        chosen.write(backbone, draft)
        difference, scale = _compare(backbone, chosen, draft)
        if not difference <= TOLERANCE * max(1.0, scale):  # nor if it is no number
            raise UserError(
                f"{name}: features of the file differ from ours by {difference:.2g} (allowed {TOLERANCE:g} of "
                f"{max(1.0, scale):.2g}); nothing was written, export --format safetensors instead"
            )
        os.replace(draft, path)
    except RuntimeError as error:  # a recorder that does not know an operation, a graph that does not run
        said = str(error).strip().splitlines()[-1]
        raise UserError(f"format: {name} cannot hold {backbone.architecture}: {said}") from error
    except OSError as error:
        raise UserError(f"out: {str(path)!r} cannot be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return Exported(path, difference, scale, chosen.usage(backbone, path))


@torch.no_grad()
def _compare(backbone: TrainedBackbone, chosen: Format, path: Path) -> tuple[float, float]:
    images = torch.randn(_IMAGES, *image_shape(backbone), generator=torch.Generator().manual_seed(0))
    expected = pooled(backbone.module, images)
    answered = chosen.reload(backbone, path)(images)
    assert answered.shape == expected.shape, f"{tuple(answered.shape)} instead of {tuple(expected.shape)}"
    return (answered - expected).abs().max().item(), expected.abs().max().item()
