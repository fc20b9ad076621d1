"""From encoded images to a batch: one decode, every view from it, extra columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from ssl_ray.data.augment.scratch import keep_freed_memory
from ssl_ray.data.decode import BrokenImage, decode, decode_known, read_header
from ssl_ray.data.random import Draws
from ssl_ray.data.view_makers import Drawn, ViewMaker

_EXTRAS = 1 << 32  # extra columns draw from stream _EXTRAS + position, apart from every view's


@dataclass(frozen=True)
class Column:
    """What one sample holds in a column of the batch."""

    shape: tuple[int, ...]
    dtype: str


class Extra(Protocol):
    """A column beside the views, drawn per sample."""

    @property
    def column(self) -> Column:
        """What one sample holds."""

    def draw(self, draws: Draws) -> np.ndarray:
        """The value of one sample, of the column's shape."""


class ViewPipeline:
    """Makes every view and extra column of a sample; the same (seed, epoch, index) gives the same pixels.

    views: what makes the views, in this order. extras: name -> column beside the views. eval_size: side of the whole
    image as features are taken from it, pixels; that of the first view unless views are but parts of a crop.

    columns: name -> Column of one sample; "view_0", "view_1", ... then the extras. sizes: side of each view, pixels.
    """

    def __init__(
        self,
        views: Sequence[ViewMaker],
        extras: Mapping[str, Extra] | None = None,
        eval_size: int | None = None,
    ) -> None:
        self.views = tuple(views)
        self.extras = dict(extras or {})
        self.sizes = tuple(size for view in self.views for size in view.sizes)
        self.eval_size = eval_size or self.sizes[0]
        self.columns = {f"view_{i}": Column((size, size, 3), "uint8") for i, size in enumerate(self.sizes)}
        self.columns |= {name: extra.column for name, extra in self.extras.items()}

    def write(
        self, data: bytes, *, seed: int, epoch: int, index: int, out: dict[str, np.ndarray], row: int
    ) -> None:
        """Decodes once and writes all columns into out[column][row]. Raises BrokenImage.

        The boxes are drawn from the header's size, so that a JPEG of which every view needs half the resolution or
        less is decoded at 1/2, 1/4 or 1/8 of its size.
        """
        header = read_header(data)
        drawn = self.draw(header.height, header.width, seed=seed, epoch=epoch, index=index)
        reduce = self.reduction(drawn) if header.jpeg else 1
        image = decode_known(data, header, reduce)
        height, width = image.shape[:2]
        if (height, width) != (-(-header.height // reduce), -(-header.width // reduce)):
            # Turned by an orientation that only the decoder knows of.
            self.write_image(decode(data), seed=seed, epoch=epoch, index=index, out=out, row=row)
            return
        if reduce > 1:
            drawn = [Drawn(d.box.reduced(reduce, height, width), d.params) for d in drawn]
        self.apply(image, drawn, seed=seed, epoch=epoch, index=index, out=out, row=row)

    def write_image(
        self, image: np.ndarray, *, seed: int, epoch: int, index: int, out: dict[str, np.ndarray], row: int
    ) -> None:
        """The same from a decoded image, (H, W, 3) uint8 RGB."""
        drawn = self.draw(*image.shape[:2], seed=seed, epoch=epoch, index=index)
        self.apply(image, drawn, seed=seed, epoch=epoch, index=index, out=out, row=row)

    def draw(self, height: int, width: int, *, seed: int, epoch: int, index: int) -> list[Drawn]:
        """All parameters of all views of an image of height x width pixels."""
        return [view.draw(Draws(seed, epoch, index, i), height, width) for i, view in enumerate(self.views)]

    def apply(
        self,
        image: np.ndarray,
        drawn: Sequence[Drawn],
        *,
        seed: int,
        epoch: int,
        index: int,
        out: dict[str, np.ndarray],
        row: int,
    ) -> None:
        """Writes the views with these parameters, and the extra columns."""
        first = 0
        for view, parameters in zip(self.views, drawn, strict=True):
            after = first + len(view.sizes)
            view.apply(image, parameters, [out[f"view_{i}"][row] for i in range(first, after)])
            first = after
        for i, (name, extra) in enumerate(self.extras.items()):
            out[name][row] = extra.draw(Draws(seed, epoch, index, _EXTRAS + i))

    def reduction(self, drawn: Sequence[Drawn]) -> int:
        """The largest of 8, 4, 2, 1 by which the image can shrink with no view having to be enlarged for it."""
        sides = [
            (min(d.box.height, d.box.width), v.resolution) for d, v in zip(drawn, self.views, strict=True)
        ]
        return next((r for r in (8, 4, 2) if all(side >= r * needed for side, needed in sides)), 1)


def make_batch(
    pipeline: ViewPipeline, blobs: Sequence[bytes], indices: Sequence[int] | np.ndarray, seed: int, epoch: int
) -> tuple[dict[str, np.ndarray], list[tuple[int, str]]]:
    """Columns of a batch, `index` (int64) among them, and (row, reason) for every image that is broken."""
    # A process makes its views on one core; many of them share the machine.
    cv2.setNumThreads(0)
    keep_freed_memory()
    index = np.asarray(indices, np.int64)
    out = {name: np.zeros((len(blobs), *c.shape), c.dtype) for name, c in pipeline.columns.items()}
    failures = []
    for row, (data, i) in enumerate(zip(blobs, index.tolist(), strict=True)):
        try:
            pipeline.write(data, seed=seed, epoch=epoch, index=i, out=out, row=row)
        except BrokenImage as error:
            failures.append((row, error.reason))
    return out | {"index": index}, failures
