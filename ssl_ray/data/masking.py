"""Which patches a method hides: columns drawn per sample, by (seed, epoch, index) like the views."""

import math
from dataclasses import dataclass

import numpy as np

from ssl_ray.data.pipeline import Column
from ssl_ray.data.random import Draws
from ssl_ray.errors import UserError
from ssl_ray.ranges import Count, Part, Patches, Share

_TRIES = 10  # shapes tried for a block before it counts as a failure
_FAILURES = 100  # after so many in a row a single patch is hidden instead


@dataclass(frozen=True)
class UniformNoise:
    """`length` float32 numbers in [0, 1): MAE masks the patches whose numbers are largest."""

    length: Patches

    @property
    def column(self) -> Column:
        """(length,) float32."""
        return Column((self.length,), "float32")

    def draw(self, draws: Draws) -> np.ndarray:
        """The numbers of one sample."""
        return draws.random(self.length).astype(np.float32)


@dataclass(frozen=True)
class RandomCellMask:
    """Cells of a grid hidden at random, each cell some patches wide; SimMIM, arXiv 2111.09886, section 3.2.

    cells: along a side. patches: along a side of a cell. mask_ratio: share of the cells that is hidden, rounded up to
    whole cells.
    """

    cells: Count
    patches: Count
    mask_ratio: Part

    def __post_init__(self) -> None:
        if self.cells < 1 or self.patches < 1:
            raise UserError(f"a mask of {self.cells} x {self.cells} cells of {self.patches} patches is empty")
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"mask_ratio {self.mask_ratio}: must lie between 0 and 1")

    @property
    def num_masked(self) -> int:
        """Cells hidden in every sample."""
        return max(1, math.ceil(self.cells**2 * self.mask_ratio - 1e-9))  # 100 x 0.55 is 55.00000000000001

    @property
    def column(self) -> Column:
        """(cells * patches, cells * patches) uint8, 1 = hidden."""
        return Column((self.cells * self.patches,) * 2, "uint8")

    def draw(self, draws: Draws) -> np.ndarray:
        """The mask of one sample."""
        mask = np.zeros(self.cells**2, np.uint8)
        mask[np.argsort(draws.random(self.cells**2), kind="stable")[: self.num_masked]] = 1
        return mask.reshape(self.cells, self.cells).repeat(self.patches, axis=0).repeat(self.patches, axis=1)


@dataclass(frozen=True)
class BlockMask:
    """Rectangles hidden one after another until exactly `num_masked` patches are; BEiT, arXiv 2106.08254, algorithm 1.

    side: patches along a side of the image. min_masked: smallest area of a rectangle, in patches. min_aspect: its
    height / width is log-uniform between this and the inverse. Rectangles may overlap; one that would hide too many
    patches is not taken.
    """

    side: Count
    num_masked: Count
    min_masked: Count = 16
    min_aspect: Share = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.num_masked < self.side**2:
            raise UserError(
                f"num_masked {self.num_masked}: at least 1, and fewer than all {self.side} x {self.side} patches"
            )
        if not 0 < self.min_masked <= self.num_masked:
            raise UserError(f"min_masked {self.min_masked}: from 1 to num_masked {self.num_masked}")
        if not 0 < self.min_aspect <= 1:
            raise UserError(f"min_aspect {self.min_aspect}: must be above 0 and at most 1")

    @property
    def column(self) -> Column:
        """(side, side) uint8, 1 = hidden."""
        return Column((self.side, self.side), "uint8")

    def draw(self, draws: Draws) -> np.ndarray:
        """The mask of one sample."""
        mask = np.zeros((self.side, self.side), np.uint8)
        missing, failures = self.num_masked, 0
        while missing:
            hidden = self._hide_block(draws, mask, missing)
            failures = 0 if hidden else failures + 1
            if failures == _FAILURES:
                visible = np.flatnonzero(mask == 0)
                mask.flat[visible[draws.integers(0, len(visible))]] = hidden = 1
            missing -= hidden
        return mask

    def _hide_block(self, draws: Draws, mask: np.ndarray, most: int) -> int:
        """Hides one rectangle with at most `most` visible patches; returns how many it had, 0 if none was found."""
        for _ in range(_TRIES):
            area = draws.uniform(self.min_masked, most)
            aspect = draws.log_uniform(self.min_aspect, 1 / self.min_aspect)
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < height < self.side and 0 < width < self.side):
                continue
            top, left = (draws.integers(0, self.side - extent + 1) for extent in (height, width))
            block = mask[top : top + height, left : left + width]
            visible = block.size - int(block.sum())
            if 0 < visible <= most:
                block[:] = 1
                return visible
        return 0
