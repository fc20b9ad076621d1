"""Random operations on one view: `draw` takes the parameters, `apply` uses them.

`draw` returns None where the operation is not to be applied.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ssl_ray.data.augment import color, filters, geometry
from ssl_ray.data.random import Draws


class Transform(Protocol):
    """An operation on (S, S, 3) uint8 whose parameters are drawn apart from its application."""

    def draw(self, draws: Draws) -> Any:
        """The parameters of one application, or None: leave the image as it is."""

    def apply(self, image: np.ndarray, params: Any) -> np.ndarray:
        """The operation with these parameters."""


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors with probability p."""

    p: float = 0.5

    def draw(self, draws: Draws) -> bool | None:
        return draws.bernoulli(self.p) or None

    def apply(self, image: np.ndarray, params: bool) -> np.ndarray:
        return geometry.flip(image)


class Jitter(NamedTuple):
    """Factors of one colour jitter and the order of its four operations."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, ...]


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue in random order, with probability p.

    Strengths are torchvision's: factors from [max(0, 1 - strength), 1 + strength], hue shift from [-hue, hue] turns.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 1.0

    def draw(self, draws: Draws) -> Jitter | None:
        applied = draws.bernoulli(self.p)
        b, c, s = (
            draws.uniform(max(0.0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)
        )
        params = Jitter(b, c, s, draws.uniform(-self.hue, self.hue), tuple(draws.permutation(4)))
        return params if applied else None

    def apply(self, image: np.ndarray, params: Jitter) -> np.ndarray:
        for op in params.order:
            if op == 0 and self.brightness:
                image = color.adjust_brightness(image, params.brightness)
            elif op == 1 and self.contrast:
                image = color.adjust_contrast(image, params.contrast)
            elif op == 2 and self.saturation:
                image = color.adjust_saturation(image, params.saturation)
            elif op == 3 and self.hue:
                image = color.adjust_hue(image, params.hue)
        return image


@dataclass(frozen=True)
class Grayscale:
    """Luma in all channels with probability p."""

    p: float = 0.2

    def draw(self, draws: Draws) -> bool | None:
        return draws.bernoulli(self.p) or None

    def apply(self, image: np.ndarray, params: bool) -> np.ndarray:
        return color.to_grayscale(image)


@dataclass(frozen=True)
class GaussianBlur:
    """Gaussian blur with probability p, sigma uniform, in pixels of the view."""

    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def draw(self, draws: Draws) -> float | None:
        applied, sigma = draws.bernoulli(self.p), draws.uniform(*self.sigma)
        return sigma if applied else None

    def apply(self, image: np.ndarray, params: float) -> np.ndarray:
        return filters.gaussian_blur(image, params)


@dataclass(frozen=True)
class Solarize:
    """Inverts values from `threshold` upwards with probability p."""

    p: float = 0.2
    threshold: int = 128

    def draw(self, draws: Draws) -> bool | None:
        return draws.bernoulli(self.p) or None

    def apply(self, image: np.ndarray, params: bool) -> np.ndarray:
        return color.solarize(image, self.threshold)
