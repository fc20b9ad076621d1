"""RandAugment and random erasing: what fine-tuning with labels adds to crops and flips."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from pydantic import Field

from ssl_ray.data.augment.color import adjust_brightness, adjust_contrast, adjust_saturation, solarize
from ssl_ray.data.random import Draws
from ssl_ray.errors import UserError
from ssl_ray.ranges import Fraction, NotNegative, Share

Operations = Annotated[int, Field(ge=0, le=100)]
Magnitude = Annotated[float, Field(ge=0, le=10)]


_LEVELS = 10.0  # of magnitudes


def _warp(view: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """Output pixel (x, y) comes from matrix @ (x, y, 1); what comes from outside is grey."""
    size = (view.shape[1], view.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped: np.ndarray = cv2.warpAffine(
        view, np.array(matrix), size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(128, 128, 128)
    )
    return warped


def _turn(view: np.ndarray, degrees: float) -> np.ndarray:
    height, width = view.shape[:2]
    x, y = (width - 1) / 2, (height - 1) / 2
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _warp(view, [[c, s, x - c * x - s * y], [-s, c, y + s * x - c * y]])


def _autocontrast(view: np.ndarray) -> np.ndarray:
    """Each channel stretched to 0..255; one of a single value stays."""
    low, high = view.min((0, 1)).astype(np.float32), view.max((0, 1)).astype(np.float32)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1)
    stretched: np.ndarray = np.clip(np.rint((view - np.where(high > low, low, 0)) * scale), 0, 255)
    return stretched.astype(np.uint8)


def _equalize(view: np.ndarray) -> np.ndarray:
    equal: np.ndarray = np.stack(
        [cv2.equalizeHist(np.ascontiguousarray(view[:, :, i])) for i in range(3)], axis=2
    )
    return equal


def _sharpen(view: np.ndarray, factor: float) -> np.ndarray:
    """Blends with a smoothed copy, as Pillow: 0 is smooth, 1 the image, above 1 sharper."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = cv2.filter2D(view, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    sharp: np.ndarray = cv2.addWeighted(view, factor, smooth, 1 - factor, 0)
    return sharp


# Name -> the view at a signed strength of -1..1. Ranges are timm's "increasing" ones, those of MAE and DeiT; posterize
# keeps at least 4 bits, as in torchvision.
OPERATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "autocontrast": lambda view, s: _autocontrast(view),
    "equalize": lambda view, s: _equalize(view),
    "invert": lambda view, s: 255 - view,
    "rotate": lambda view, s: _turn(view, 30 * s),
    "posterize": lambda view, s: view & np.uint8(256 - 2 ** int(4 * abs(s))),
    "solarize": lambda view, s: solarize(view, 256 - int(256 * abs(s))),
    "solarize_add": lambda view, s: np.where(view < 128, view + np.uint8(min(127, int(110 * abs(s)))), view),
    "color": lambda view, s: adjust_saturation(view, 1 + 0.9 * s),
    "contrast": lambda view, s: adjust_contrast(view, 1 + 0.9 * s),
    "brightness": lambda view, s: adjust_brightness(view, 1 + 0.9 * s),
    "sharpness": lambda view, s: _sharpen(view, 1 + 0.9 * s),
    "shear_x": lambda view, s: _warp(view, [[1, 0.3 * s, 0], [0, 1, 0]]),
    "shear_y": lambda view, s: _warp(view, [[1, 0, 0], [0.3 * s, 1, 0]]),
    "translate_x": lambda view, s: _warp(view, [[1, 0, 0.45 * s * view.shape[1]], [0, 1, 0]]),
    "translate_y": lambda view, s: _warp(view, [[1, 0, 0], [0, 1, 0.45 * s * view.shape[0]]]),
}
_NAMES = tuple(OPERATIONS)


@dataclass(frozen=True)
class RandAugment:
    """A few operations drawn out of fifteen, each at a strength about `magnitude`. Source: arXiv 1909.13719.

    As MAE and DeiT fine-tune, "rand-m9-mstd0.5-inc1": num_ops 2, magnitude 9 of 10 with deviation 0.5, each operation
    with probability p.
    """

    num_ops: Operations = 2
    magnitude: Magnitude = 9.0
    deviation: NotNegative = 0.5
    p: Fraction = 0.5

    def __post_init__(self) -> None:
        if (
            self.num_ops < 0
            or not 0 <= self.magnitude <= _LEVELS
            or self.deviation < 0
            or not 0 <= self.p <= 1
        ):
            raise UserError(
                f"RandAugment: num_ops {self.num_ops}, magnitude {self.magnitude:g}, deviation {self.deviation:g}, p "
                f"{self.p:g}; magnitude lies in 0 to {_LEVELS:g}, p in 0 to 1, the others are not negative"
            )

    def draw(self, draws: Draws) -> list[tuple[str, float]] | None:
        """See `Transform`: operations and their strengths."""
        chosen = []
        for _ in range(self.num_ops):
            name = _NAMES[draws.integers(0, len(_NAMES))]
            applied, sign = draws.bernoulli(self.p), 1 if draws.bernoulli(0.5) else -1
            # Box and Muller: a normal number of two uniform ones.
            normal = math.sqrt(-2 * math.log(1 - draws.uniform())) * math.cos(2 * math.pi * draws.uniform())
            level = min(max(self.magnitude + self.deviation * normal, 0.0), _LEVELS)
            if applied:
                chosen.append((name, sign * level / _LEVELS))
        return chosen or None

    def apply(self, view: np.ndarray, params: list[tuple[str, float]]) -> None:
        """See `Transform`."""
        for name, strength in params:
            view[...] = OPERATIONS[name](view, strength)


class Erased(NamedTuple):
    """A rectangle in parts of the view's side, and the seed of the noise in it."""

    top: float
    left: float
    height: float
    width: float
    seed: int


@dataclass(frozen=True)
class RandomErasing:
    """With probability p a rectangle becomes noise: 2 % to a third of the view. Source: arXiv 1708.04896.

    Noise is uniform over 0..255 for each pixel and channel. MAE and DeiT: p 0.25.
    """

    p: Fraction = 0.25
    area: tuple[Share, Share] = (0.02, 1 / 3)
    min_aspect: Share = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1 or not 0 < self.area[0] <= self.area[1] <= 1 or not 0 < self.min_aspect <= 1:
            raise UserError(
                f"RandomErasing: p {self.p:g}, area {self.area}, min_aspect {self.min_aspect:g}; each lies in 0 to 1, "
                "the smaller area first"
            )

    def draw(self, draws: Draws) -> Erased | None:
        """See `Transform`."""
        applied, area = draws.bernoulli(self.p), draws.uniform(*self.area)
        aspect = math.sqrt(draws.log_uniform(self.min_aspect, 1 / self.min_aspect))
        height, width = min(1.0, math.sqrt(area) * aspect), min(1.0, math.sqrt(area) / aspect)
        top, left = draws.uniform(0, 1 - height), draws.uniform(0, 1 - width)
        erased = Erased(top, left, height, width, draws.integers(0, 1 << 32))
        return erased if applied else None

    def apply(self, view: np.ndarray, params: Any) -> None:
        """See `Transform`."""
        rows, columns = view.shape[:2]
        top, left = round(params.top * rows), round(params.left * columns)
        box = view[top : top + round(params.height * rows), left : left + round(params.width * columns)]
        noise = np.random.Generator(np.random.Philox(params.seed))
        box[...] = noise.integers(0, 256, box.shape, dtype=np.uint8)
