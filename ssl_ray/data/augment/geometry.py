"""Where a view is cut from the image: boxes, and the one resampling that follows."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import cv2
import numpy as np

from ssl_ray.data.augment.scratch import scratch
from ssl_ray.data.random import Draws

Interpolation = Literal["bilinear", "bicubic"]

_TRIES = 10
_FLAGS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def reduced(self, factor: int, height: int, width: int) -> "Box":
        """The box on the same image at 1/factor of its size, which there is height x width."""
        top, left = min(self.top // factor, height - 1), min(self.left // factor, width - 1)
        h, w = max(1, round(self.height / factor)), max(1, round(self.width / factor))
        return Box(top, left, min(h, height - top), min(w, width - left))


def resized_crop(
    image: np.ndarray,
    box: Box,
    size: int,
    interpolation: Interpolation = "bilinear",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Cuts `box` out of (H, W, 3) uint8 and resamples it to (size, size, 3).

    A box of twice the size and more is halved first, by averages of 2 x 2, until it is smaller than that: every
    pixel of the box then has a share in the view, at a fraction of the cost of PIL's antialiasing.
    """
    crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
    halvings = 0
    while min(crop.shape[:2]) >= 2 * size:
        height, width = crop.shape[0] // 2, crop.shape[1] // 2
        half = scratch(f"half {halvings}", (height, width, 3))
        crop = cv2.resize(
            crop[: 2 * height, : 2 * width], (width, height), half, interpolation=cv2.INTER_AREA
        )
        halvings += 1
    view: np.ndarray = cv2.resize(crop, (size, size), out, interpolation=_FLAGS[interpolation])
    return view


def horizontal_flip(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Mirrors left and right."""
    flipped: np.ndarray = cv2.flip(image, 1, out)
    return flipped


class Cut(Protocol):
    """Chooses the box that a view is cut from."""

    def draw(self, draws: Draws, height: int, width: int) -> Box:
        """The box for an image of height x width pixels."""


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and aspect ratio, as torchvision draws it.

    scale: area as a share of the image's, uniform. ratio: width / height, log-uniform. Ten tries to fit one
    inside the image, then the largest central box with an admissible ratio.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def draw(self, draws: Draws, height: int, width: int) -> Box:
        """The box for an image of height x width pixels."""
        area = height * width
        for _ in range(_TRIES):
            target = area * draws.uniform(*self.scale)
            ratio = draws.log_uniform(*self.ratio)
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Box(draws.integers(0, height - h + 1), draws.integers(0, width - w + 1), h, w)
        w, h = width, height
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        return Box((height - h) // 2, (width - w) // 2, h, w)


@dataclass(frozen=True)
class CenterCrop:
    """The central square whose side is `fraction` of the short side; 0.875 is "resize 256, crop 224"."""

    fraction: float = 0.875

    def draw(self, draws: Draws, height: int, width: int) -> Box:
        """The box for an image of height x width pixels; nothing is random."""
        side = max(1, round(min(height, width) * self.fraction))
        return Box((height - side) // 2, (width - side) // 2, side, side)
