"""Random operations on one view: `draw` takes the parameters, `apply` uses them."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ssl_ray.data.augment.color import color_jitter, solarize, to_grayscale
from ssl_ray.data.augment.filters import gaussian_blur
from ssl_ray.data.augment.geometry import horizontal_flip
from ssl_ray.data.random import Draws


class Transform(Protocol):
    """A random operation on a view, (S, S, 3) uint8."""

    def draw(self, draws: Draws) -> Any:
        """The parameters, or None: the view stays as it is."""

    def apply(self, view: np.ndarray, params: Any) -> None:
        """Changes the view in place."""


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors with probability p."""

    p: float = 0.5

    def draw(self, draws: Draws) -> bool | None:
        """See `Transform`."""
        return draws.bernoulli(self.p) or None

    def apply(self, view: np.ndarray, params: bool) -> None:
        """See `Transform`."""
        horizontal_flip(view, view)


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
        """See `Transform`."""
        applied = draws.bernoulli(self.p)
        b, c, s = (
            draws.uniform(max(0.0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)
        )
        params = Jitter(b, c, s, draws.uniform(-self.hue, self.hue), tuple(draws.permutation(4)))
        return params if applied else None

    def apply(self, view: np.ndarray, params: Jitter) -> None:
        """See `Transform`."""
        color_jitter(view, *params, out=view)


@dataclass(frozen=True)
class Grayscale:
    """Luma in all channels with probability p."""

    p: float = 0.2

    def draw(self, draws: Draws) -> bool | None:
        """See `Transform`."""
        return draws.bernoulli(self.p) or None

    def apply(self, view: np.ndarray, params: bool) -> None:
        """See `Transform`."""
        to_grayscale(view, view)


@dataclass(frozen=True)
class GaussianBlur:
    """Gaussian blur with probability p, sigma uniform, in pixels of the view."""

    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def draw(self, draws: Draws) -> float | None:
        """See `Transform`."""
        applied, sigma = draws.bernoulli(self.p), draws.uniform(*self.sigma)
        return sigma if applied else None

    def apply(self, view: np.ndarray, params: float) -> None:
        """See `Transform`."""
        gaussian_blur(view, params, view)


@dataclass(frozen=True)
class Solarize:
    """Inverts values from `threshold` upwards with probability p."""

    p: float = 0.2
    threshold: int = 128

    def draw(self, draws: Draws) -> bool | None:
        """See `Transform`."""
        return draws.bernoulli(self.p) or None

    def apply(self, view: np.ndarray, params: bool) -> None:
        """See `Transform`."""
        solarize(view, self.threshold, view)
