"""Random operations on one view: `draw` takes the parameters, `apply` uses them."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from ssl_ray.data.augment.color import color_jitter, solarize, to_grayscale
from ssl_ray.data.augment.filters import gaussian_blur
from ssl_ray.data.augment.geometry import horizontal_flip, rotate
from ssl_ray.data.random import Draws
from ssl_ray.errors import UserError
from ssl_ray.ranges import Fraction, NotNegative

Hue = Annotated[float, Field(ge=0, le=0.5)]
Sigma = Annotated[float, Field(gt=0, le=100)]
Degrees = Annotated[float, Field(ge=0, le=180)]


class Transform(Protocol):
    """A random operation on a view, (S, S, 3) uint8."""

    def draw(self, draws: Draws) -> Any:
        """The parameters, or None: the view stays as it is."""

    def apply(self, view: np.ndarray, params: Any) -> None:
        """Changes the view in place."""


def _check_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise UserError(f"probability {p:g}: must be from 0 to 1")


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors with probability p."""

    p: Fraction = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.p)

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

    brightness: NotNegative = 0.4
    contrast: NotNegative = 0.4
    saturation: NotNegative = 0.4
    hue: Hue = 0.1
    p: Fraction = 1.0

    def __post_init__(self) -> None:
        _check_probability(self.p)
        for name in ("brightness", "contrast", "saturation"):
            if (strength := getattr(self, name)) < 0:
                raise UserError(f"{name} {strength:g}: the strength of a jitter must not be negative")
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"hue {self.hue:g}: must be from 0 to 0.5 turns")

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

    p: Fraction = 0.2

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def draw(self, draws: Draws) -> bool | None:
        """See `Transform`."""
        return draws.bernoulli(self.p) or None

    def apply(self, view: np.ndarray, params: bool) -> None:
        """See `Transform`."""
        to_grayscale(view, view)


@dataclass(frozen=True)
class GaussianBlur:
    """Gaussian blur with probability p, sigma uniform, in pixels of the view."""

    p: Fraction = 0.5
    sigma: tuple[Sigma, Sigma] = (0.1, 2.0)

    def __post_init__(self) -> None:
        _check_probability(self.p)
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise UserError(
                f"sigma {self.sigma[0]:g} to {self.sigma[1]:g} of a blur: above 0, the smaller first"
            )

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

    p: Fraction = 0.2
    threshold: Annotated[int, Field(ge=0, le=256)] = 128

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def draw(self, draws: Draws) -> bool | None:
        """See `Transform`."""
        return draws.bernoulli(self.p) or None

    def apply(self, view: np.ndarray, params: bool) -> None:
        """See `Transform`."""
        solarize(view, self.threshold, view)


@dataclass(frozen=True)
class Rotation:
    """Turns by an angle between -degrees and degrees, uniform; the corners that come in are black."""

    degrees: Degrees = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180:
            raise UserError(f"degrees {self.degrees:g} of a rotation: must be from 0 to 180")

    def draw(self, draws: Draws) -> float | None:
        """See `Transform`."""
        return draws.uniform(-self.degrees, self.degrees) or None

    def apply(self, view: np.ndarray, params: float) -> None:
        """See `Transform`."""
        rotate(view, params, view)


class Dropping(NamedTuple):
    """Which channel stays, and the seed of the noise in the other two."""

    kept: int
    seed: int


@dataclass(frozen=True)
class ColorDropping:
    """With probability p one colour channel stays; the others become faint noise about their means.

    Doersch et al., arXiv 1505.05192, section 3.1: the noise has a hundredth of the standard deviation of the channel
    that stays.
    """

    p: Fraction = 1.0

    def __post_init__(self) -> None:
        _check_probability(self.p)

    def draw(self, draws: Draws) -> Dropping | None:
        """See `Transform`."""
        applied = draws.bernoulli(self.p)
        params = Dropping(draws.integers(0, 3), draws.integers(0, 1 << 32))
        return params if applied else None

    def apply(self, view: np.ndarray, params: Dropping) -> None:
        """See `Transform`."""
        rng = np.random.Generator(np.random.Philox(params.seed))
        deviation = view[:, :, params.kept].std() / 100
        for channel in {0, 1, 2} - {params.kept}:
            noise = rng.normal(view[:, :, channel].mean(), deviation, view.shape[:2])
            view[:, :, channel] = np.clip(np.rint(noise), 0, 255)
