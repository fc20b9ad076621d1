"""What makes views of an image: one view, several of one crop, patches of one crop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ssl_ray.data.augment.geometry import Box, Cut, Interpolation, resized_crop
from ssl_ray.data.augment.scratch import scratch
from ssl_ray.data.augment.transforms import Transform
from ssl_ray.data.random import Draws
from ssl_ray.errors import UserError
from ssl_ray.ranges import Natural, Pixels


class Drawn(NamedTuple):
    """Everything random about one view, or about views that are made together."""

    box: Box
    params: list[Any]


class ViewMaker(Protocol):
    """One view or several, made from one box of the image."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Side of each view it makes, in pixels."""

    @property
    def resolution(self) -> int:
        """Pixels along the short side of the box that it can use; more are not worth decoding."""

    def draw(self, draws: Draws, height: int, width: int) -> Drawn:
        """All parameters for an image of height x width pixels."""

    def apply(self, image: np.ndarray, drawn: Drawn, outs: Sequence[np.ndarray]) -> None:
        """Writes the views of `image` with these parameters to `outs`, each (size, size, 3) uint8."""


@dataclass(frozen=True)
class View:
    """One view: cut a box, resample it to size x size pixels, then `transforms` in order."""

    size: Pixels
    cut: Cut
    transforms: tuple[Transform, ...] = ()
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size {self.size} of a view: it takes at least one pixel")

    @property
    def sizes(self) -> tuple[int, ...]:
        """See `ViewMaker`."""
        return (self.size,)

    @property
    def resolution(self) -> int:
        """See `ViewMaker`."""
        return self.size

    def draw(self, draws: Draws, height: int, width: int) -> Drawn:
        """See `ViewMaker`."""
        return Drawn(self.cut.draw(draws, height, width), [t.draw(draws) for t in self.transforms])

    def apply(self, image: np.ndarray, drawn: Drawn, outs: Sequence[np.ndarray]) -> None:
        """See `ViewMaker`."""
        (out,) = outs
        resized_crop(image, drawn.box, self.size, self.interpolation, out)
        for transform, params in zip(self.transforms, drawn.params, strict=True):
            if params is not None:
                transform.apply(out, params)


@dataclass(frozen=True)
class SameCrop:
    """One crop seen through several views, say at two sizes: the first view draws for all of them."""

    views: tuple[View, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """See `ViewMaker`."""
        return tuple(v.size for v in self.views)

    @property
    def resolution(self) -> int:
        """See `ViewMaker`."""
        return max(self.sizes)

    def draw(self, draws: Draws, height: int, width: int) -> Drawn:
        """See `ViewMaker`."""
        return self.views[0].draw(draws, height, width)

    def apply(self, image: np.ndarray, drawn: Drawn, outs: Sequence[np.ndarray]) -> None:
        """See `ViewMaker`."""
        for view, out in zip(self.views, outs, strict=True):
            view.apply(image, drawn, [out])


# (row, column) of each patch in the 3 x 3 grid: the centre, then its neighbours down the first column, the second,
# the third.
PATCH_CELLS = ((1, 1), (0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2), (2, 2))


@dataclass(frozen=True)
class PatchGrid:
    """Nine patches of one view that is divided into 3 x 3 cells; see PATCH_CELLS for their order.

    canvas: the view. patch_size: side of a patch, pixels. gap: at least so many pixels lie between two patches; a patch
    lies anywhere in its cell that leaves half of it free on each side. transforms: drawn anew for each patch.
    """

    canvas: View
    patch_size: Pixels
    gap: Natural = 0
    transforms: tuple[Transform, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.patch_size <= self._cell or not 0 <= self.gap <= self._cell - self.patch_size:
            raise UserError(
                f"patch_size {self.patch_size} with gap {self.gap}: together they must fit into a cell, a third of "
                f"size {self.canvas.size}, which has {self._cell} pixels; raise size or lower the others"
            )

    @property
    def _cell(self) -> int:
        return self.canvas.size // 3

    @property
    def sizes(self) -> tuple[int, ...]:
        """See `ViewMaker`."""
        return (self.patch_size,) * len(PATCH_CELLS)

    @property
    def resolution(self) -> int:
        """See `ViewMaker`."""
        return self.canvas.size

    def draw(self, draws: Draws, height: int, width: int) -> Drawn:
        """See `ViewMaker`."""
        box, canvas = self.canvas.draw(draws, height, width)
        places = self._cell - self.patch_size - self.gap + 1  # in each direction
        patches = []
        for row, column in PATCH_CELLS:
            top, left = (self._cell * i + self.gap // 2 + draws.integers(0, places) for i in (row, column))
            patches.append((top, left, [t.draw(draws) for t in self.transforms]))
        return Drawn(box, [canvas, patches])

    def apply(self, image: np.ndarray, drawn: Drawn, outs: Sequence[np.ndarray]) -> None:
        """See `ViewMaker`."""
        box, (of_canvas, of_patches) = drawn
        canvas = scratch("canvas", (self.canvas.size, self.canvas.size, 3))
        self.canvas.apply(image, Drawn(box, of_canvas), [canvas])
        for (top, left, of_patch), out in zip(of_patches, outs, strict=True):
            out[:] = canvas[top : top + self.patch_size, left : left + self.patch_size]
            for transform, params in zip(self.transforms, of_patch, strict=True):
                if params is not None:
                    transform.apply(out, params)
