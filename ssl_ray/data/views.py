"""What an algorithm's views of an image are: one decode, a chain of operations per view, extra columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from ssl_ray.data.augment.geometry import Box, CenterCrop, Cut, Interpolation, RandomResizedCrop, resized_crop
from ssl_ray.data.augment.scratch import keep_freed_memory
from ssl_ray.data.augment.transforms import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Solarize,
    Transform,
)
from ssl_ray.data.decode import BrokenImage, decode, decode_known, read_header
from ssl_ray.data.random import Draws

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


@dataclass(frozen=True)
class UniformNoise:
    """`length` float32 numbers in [0, 1): MAE masks the patches whose numbers are largest."""

    length: int

    @property
    def column(self) -> Column:
        """(length,) float32."""
        return Column((self.length,), "float32")

    def draw(self, draws: Draws) -> np.ndarray:
        """The numbers of one sample."""
        return draws.random(self.length).astype(np.float32)


class Drawn(NamedTuple):
    """Everything random about one view."""

    box: Box
    params: list[Any]


@dataclass(frozen=True)
class View:
    """One view: cut a box, resample it to size x size pixels, then `transforms` in order."""

    size: int
    cut: Cut
    transforms: tuple[Transform, ...] = ()
    interpolation: Interpolation = "bilinear"

    def draw(self, draws: Draws, height: int, width: int) -> Drawn:
        """All parameters for an image of height x width pixels."""
        return Drawn(self.cut.draw(draws, height, width), [t.draw(draws) for t in self.transforms])

    def apply(self, image: np.ndarray, drawn: Drawn, out: np.ndarray) -> None:
        """Writes the view of `image` with these parameters to `out`, (size, size, 3) uint8."""
        resized_crop(image, drawn.box, self.size, self.interpolation, out)
        for transform, params in zip(self.transforms, drawn.params, strict=True):
            if params is not None:
                transform.apply(out, params)


class ViewPipeline:
    """Makes every view and extra column of a sample; the same (seed, epoch, index) gives the same pixels.

    columns: name -> Column of one sample; "view_0", "view_1", ... then the extras. sizes: side of each view, pixels.
    """

    def __init__(self, views: Sequence[View], extras: dict[str, Extra] | None = None) -> None:
        self.views = tuple(views)
        self.extras = dict(extras or {})
        self.sizes = tuple(v.size for v in self.views)
        self.columns = {f"view_{i}": Column((v.size, v.size, 3), "uint8") for i, v in enumerate(self.views)}
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
        for i, (view, parameters) in enumerate(zip(self.views, drawn, strict=True)):
            view.apply(image, parameters, out[f"view_{i}"][row])
        for i, (name, extra) in enumerate(self.extras.items()):
            out[name][row] = extra.draw(Draws(seed, epoch, index, _EXTRAS + i))

    def reduction(self, drawn: Sequence[Drawn]) -> int:
        """The largest of 8, 4, 2, 1 by which the image can shrink with no view having to be enlarged for it."""
        sides = [
            (min(d.box.height, d.box.width), view.size) for d, view in zip(drawn, self.views, strict=True)
        ]
        return next((r for r in (8, 4, 2) if all(side >= r * size for side, size in sides)), 1)


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


def contrastive_view(
    size: int,
    min_scale: float,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    jitter_p: float,
    gray_p: float,
    blur_p: float,
    min_sigma: float,
    max_sigma: float,
    solarize_p: float,
    flip_p: float,
    interpolation: Interpolation,
) -> View:
    """Crop, flip, colour jitter, grayscale, blur, solarize: what most contrastive recipes are made of.

    min_scale: smallest crop, as a share of the image's area. brightness, contrast, saturation, hue: strengths as in
    torchvision's ColorJitter. *_p: probabilities. min_sigma, max_sigma: of the blur, in pixels of the view.
    """
    transforms = (
        HorizontalFlip(flip_p),
        ColorJitter(brightness, contrast, saturation, hue, jitter_p),
        Grayscale(gray_p),
        GaussianBlur(blur_p, (min_sigma, max_sigma)),
        Solarize(solarize_p),
    )
    return View(size, RandomResizedCrop((min_scale, 1.0)), transforms, interpolation)


def moco_v1_views(
    size: int = 224,
    num_views: int = 2,
    min_scale: float = 0.2,
    gray_p: float = 0.2,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.4,
    jitter_p: float = 1.0,
    flip_p: float = 0.5,
    interpolation: Interpolation = "bilinear",
) -> ViewPipeline:
    """MoCo v1, arXiv 1911.05722: crop, grayscale, then jitter, flip. Arguments as in `contrastive_view`."""
    transforms = (
        Grayscale(gray_p),
        ColorJitter(brightness, contrast, saturation, hue, jitter_p),
        HorizontalFlip(flip_p),
    )
    view = View(size, RandomResizedCrop((min_scale, 1.0)), transforms, interpolation)
    return ViewPipeline([view] * num_views)


def moco_v2_views(
    size: int = 224,
    num_views: int = 2,
    min_scale: float = 0.2,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
    jitter_p: float = 0.8,
    gray_p: float = 0.2,
    blur_p: float = 0.5,
    min_sigma: float = 0.1,
    max_sigma: float = 2.0,
    solarize_p: float = 0.0,
    flip_p: float = 0.5,
    interpolation: Interpolation = "bilinear",
) -> ViewPipeline:
    """MoCo v2, arXiv 2003.04297: MoCo v1's with weaker hue, jitter not always, and blur."""
    view = contrastive_view(
        size,
        min_scale,
        brightness,
        contrast,
        saturation,
        hue,
        jitter_p,
        gray_p,
        blur_p,
        min_sigma,
        max_sigma,
        solarize_p,
        flip_p,
        interpolation,
    )
    return ViewPipeline([view] * num_views)


def simclr_views(
    size: int = 224,
    num_views: int = 2,
    min_scale: float = 0.08,
    brightness: float = 0.8,
    contrast: float = 0.8,
    saturation: float = 0.8,
    hue: float = 0.2,
    jitter_p: float = 0.8,
    gray_p: float = 0.2,
    blur_p: float = 0.5,
    min_sigma: float = 0.1,
    max_sigma: float = 2.0,
    solarize_p: float = 0.0,
    flip_p: float = 0.5,
    interpolation: Interpolation = "bilinear",
) -> ViewPipeline:
    """SimCLR, arXiv 2002.05709, appendix A: smaller crops and twice MoCo v2's jitter."""
    view = contrastive_view(
        size,
        min_scale,
        brightness,
        contrast,
        saturation,
        hue,
        jitter_p,
        gray_p,
        blur_p,
        min_sigma,
        max_sigma,
        solarize_p,
        flip_p,
        interpolation,
    )
    return ViewPipeline([view] * num_views)


def mae_views(
    size: int = 224,
    patch_size: int = 16,
    min_scale: float = 0.2,
    flip_p: float = 0.5,
    interpolation: Interpolation = "bicubic",
) -> ViewPipeline:
    """MAE, arXiv 2111.06377: one view, crop and flip only, and the column `mask_noise` (L,) with a number per patch."""
    view = View(size, RandomResizedCrop((min_scale, 1.0)), (HorizontalFlip(flip_p),), interpolation)
    return ViewPipeline([view], {"mask_noise": UniformNoise((size // patch_size) ** 2)})


def plain_views(
    size: int = 224, crop_fraction: float = 0.875, interpolation: Interpolation = "bilinear"
) -> ViewPipeline:
    """One view with nothing random: the central square, 0.875 of the short side; for features and evaluation."""
    return ViewPipeline([View(size, CenterCrop(crop_fraction), (), interpolation)])
