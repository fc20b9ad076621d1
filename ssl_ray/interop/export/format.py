"""What a format to export to is."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ssl_ray.errors import UserError
from ssl_ray.interop.backbone_file import TrainedBackbone

Features = Callable[[Tensor], Tensor]
"""Normalised images (B, 3, H, W) to pooled features (B, D)."""


class Format(NamedTuple):
    """suffix: of its files. refusal: why it has no place for a backbone, None if it has.

    write: makes the file. reload: reads it as its users would. usage: a line of Python that does the same.
    """

    suffix: str
    refusal: Callable[[TrainedBackbone], str | None]
    write: Callable[[TrainedBackbone, Path], None]
    reload: Callable[[TrainedBackbone, Path], Features]
    usage: Callable[[TrainedBackbone, Path], str]


def never(backbone: TrainedBackbone) -> str | None:
    """The refusal of a format that takes any backbone."""
    return None


def needed(module: str) -> Any:
    """A module that not everyone has. Raises UserError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"format: needs the package {module}; pip install {module}") from error


def arguments(backbone: TrainedBackbone) -> dict[str, Any]:
    """All plain arguments of the backbone's class, defaults included."""
    return backbone.architecture.defaults() | backbone.architecture.kwargs


def image_shape(backbone: TrainedBackbone) -> tuple[int, int, int]:
    """(C, H, W) of the images it takes."""
    return (arguments(backbone).get("in_channels", 3), backbone.image_size, backbone.image_size)
