"""Where a view is cut from the image: boxes, and the one resampling that follows."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import cv2
import numpy as np

from ssl_ray.data.augment.scratch import scratch
from ssl_ray.data.random import Draws
from ssl_ray.errors import UserError
from ssl_ray.ranges import Positive, Share

Interpolation = Literal["bilinear", "bicubic", "lanczos"]

_TRIES = 10
_LEAST_WEIGHT = 0.01  # of a neighbour in `_smoothed`; below, shrinking by 5 % or less
_FLAGS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}


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

    A box of twice the size and more is halved first, by averages of 2 x 2, until it is smaller than that. What is
    still larger than the view is smoothed as its scale demands: every pixel of the box then has its share in the
    view, at a fraction of the cost of PIL's antialiasing.
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
    crop = _smoothed(crop, size)
    view: np.ndarray = cv2.resize(crop, (size, size), out, interpolation=_FLAGS[interpolation])
    return view


def _smoothed(crop: np.ndarray, size: int) -> np.ndarray:
    """Three taps (w, 1 - 2w, w) along each side that shrinks; w gives the filter the width that shrinking by it needs.

    A triangle of r pixels on each side, PIL's bilinear filter for shrinking by r, has variance r^2 / 6, and
    interpolation itself provides 1 / 6. Three taps have 2w; measured against PIL, (r^2 - 1) / 5 comes closest.
    """
    weights = [min((extent / size) ** 2 / 10 - 0.1, 0.3) for extent in crop.shape[1::-1]]
    taps = [3 if w >= _LEAST_WEIGHT else 1 for w in weights]
    if taps == [1, 1]:
        return crop
    # OpenCV's taps are exp(-1 / 2 sigma^2) : 1; its Gaussian is faster than a filter of given taps.
    across, down = (
        math.sqrt(-0.5 / math.log(w / (1 - 2 * w))) if w >= _LEAST_WEIGHT else 1.0 for w in weights
    )
    return cv2.GaussianBlur(crop, taps, across, scratch("smoothed", crop.shape), down)  # type: ignore[no-any-return]


def horizontal_flip(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Mirrors left and right."""
    flipped: np.ndarray = cv2.flip(image, 1, out)
    return flipped


def rotate(image: np.ndarray, degrees: float, out: np.ndarray | None = None) -> np.ndarray:
    """Turns (H, W, 3) uint8 counter-clockwise about its centre; the corners that come in are black."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned: np.ndarray = cv2.warpAffine(image.copy(), matrix, (width, height), out)
    return turned


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

    scale: tuple[Share, Share] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(
                f"scale {self.scale[0]:g} to {self.scale[1]:g} of a crop: shares of the image's area, above 0 and "
                "at most 1, the smaller first"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(
                f"ratio {self.ratio[0]:g} to {self.ratio[1]:g} of a crop: above 0, the smaller first"
            )

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

    fraction: Share = 0.875

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def draw(self, draws: Draws, height: int, width: int) -> Box:
        """The box for an image of height x width pixels; nothing is random."""
        side = max(1, round(min(height, width) * self.fraction))
        return Box((height - side) // 2, (width - side) // 2, side, side)


@dataclass(frozen=True)
class RandomSquare:
    """A square anywhere in the image whose side is `fraction` of the short side; 255/292 is "resize 292, crop 255"."""

    fraction: Share = 0.875

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def draw(self, draws: Draws, height: int, width: int) -> Box:
        """The box for an image of height x width pixels."""
        side = max(1, round(min(height, width) * self.fraction))
        return Box(draws.integers(0, height - side + 1), draws.integers(0, width - side + 1), side, side)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise UserError(f"crop fraction {fraction:g}: a share of the short side, above 0, at most 1")
