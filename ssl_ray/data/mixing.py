"""How an image is mixed with another one: a column drawn per sample, by (seed, epoch, index) like the views."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from ssl_ray.data.pipeline import Column
from ssl_ray.data.random import Draws
from ssl_ray.errors import UserError
from ssl_ray.ranges import Fraction

Alpha = Annotated[float, Field(ge=0, le=100)]


@dataclass(frozen=True)
class Mixing:
    """Mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899), chosen and drawn for each image.

    mixup, cutmix: alpha of the Beta distribution that the image's own share is drawn from; 0 switches one off. p: of an
    image being mixed at all. switch_p: of CutMix, where both are on.

    A sample's numbers are (share, top, left, bottom, right): the image's own share of every pixel, and the box, in
    parts of the image's side, that its partner fills instead where the box is not empty. CutMix's share decides the
    box's area; a box that reaches over the edge is cut off.
    """

    mixup: Alpha = 0.8
    cutmix: Alpha = 1.0
    p: Fraction = 1.0
    switch_p: Fraction = 0.5

    def __post_init__(self) -> None:
        if self.mixup < 0 or self.cutmix < 0:
            raise UserError(
                f"mixup {self.mixup:g}, cutmix {self.cutmix:g}: neither alpha may be negative; 0 means off"
            )
        if not (0 <= self.p <= 1 and 0 <= self.switch_p <= 1):
            raise UserError(f"p {self.p:g}, switch_p {self.switch_p:g} of mixing: probabilities, from 0 to 1")

    @property
    def column(self) -> Column:
        """(5,) float32."""
        return Column((5,), "float32")

    def draw(self, draws: Draws) -> np.ndarray:
        """The numbers of one sample."""
        mixed, switched = draws.bernoulli(self.p), draws.bernoulli(self.switch_p)
        seed, row, column = draws.integers(0, 1 << 32), draws.uniform(), draws.uniform()
        cut = self.cutmix > 0 and (switched or not self.mixup)
        alpha = self.cutmix if cut else self.mixup
        if not mixed or not alpha:
            return np.array([1, 0, 0, 0, 0], np.float32)
        share = np.random.Generator(np.random.Philox(seed)).beta(alpha, alpha)
        if not cut:
            return np.array([share, 0, 0, 0, 0], np.float32)
        half = np.sqrt(1 - share) / 2
        box = np.clip([row - half, column - half, row + half, column + half], 0, 1)
        return np.array([1, *box], np.float32)
