"""A picture of what a view pipeline does to some images."""

from collections.abc import Sequence

import cv2
import numpy as np

from ssl_ray.data.pipeline import ViewPipeline

_GAP = 4  # pixels between pictures
_SMALLEST_CELL = 112
_PAPER = 255
_GRAY = 128
_SHOWN = 0.25  # share of a hidden pixel in what is drawn for it; the rest is gray


def preview_grid(
    pipeline: ViewPipeline, images: Sequence[np.ndarray], seed: int = 0, epochs: int = 1
) -> np.ndarray:
    """One row per image: the original, then its views in epoch 0, 1, ...; (H, W, 3) uint8 RGB.

    images: decoded, (H, W, 3) uint8 RGB; image i is drawn as sample i. All views are shown at one scale: a view of half
    the size is half as large. Tiny ones are enlarged by a whole factor without smoothing, so that their pixels show.
    What a column `mask` hides is faded in the first view.
    """
    largest = max(pipeline.sizes)
    scale = -(-_SMALLEST_CELL // largest)
    cell = largest * scale
    views = len(pipeline.sizes)
    step = cell + _GAP
    grid = np.full((len(images) * step + _GAP, (1 + epochs * views) * step + _GAP, 3), _PAPER, np.uint8)
    for row, image in enumerate(images):
        pictures = [_fit(image, cell)]
        for epoch in range(epochs):
            seen = views_of(pipeline, image, seed=seed, epoch=epoch, index=row)
            pictures += [view.repeat(scale, axis=0).repeat(scale, axis=1) for view in seen]
        for column, picture in enumerate(pictures):
            top = _GAP + row * step + (cell - picture.shape[0]) // 2
            left = _GAP + column * step + (cell - picture.shape[1]) // 2
            grid[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return grid


def views_of(
    pipeline: ViewPipeline, image: np.ndarray, *, seed: int = 0, epoch: int = 0, index: int = 0
) -> list[np.ndarray]:
    """The views of a decoded image, (S, S, 3) uint8 RGB each; what a column `mask` hides is faded in the first."""
    out = {name: np.zeros((1, *c.shape), c.dtype) for name, c in pipeline.columns.items()}
    pipeline.write_image(image, seed=seed, epoch=epoch, index=index, out=out, row=0)
    if "mask" in out:
        _fade(out["view_0"][0], out["mask"][0])
    return [out[f"view_{i}"][0] for i in range(len(pipeline.sizes))]


def _fade(view: np.ndarray, mask: np.ndarray) -> None:
    """Fades the patches of a view, (S, S, 3), that are 1 in the mask, (L, L)."""
    hidden = cv2.resize(mask, view.shape[:2], interpolation=cv2.INTER_NEAREST).astype(bool)
    view[hidden] = view[hidden] * _SHOWN + _GRAY * (1 - _SHOWN)


def _fit(picture: np.ndarray, cell: int) -> np.ndarray:
    """The picture within cell x cell pixels: enlarged by a whole factor, or shrunk."""
    height, width = picture.shape[:2]
    factor = cell / max(height, width)
    factor = float(int(factor)) if factor >= 1 else factor
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    fitted: np.ndarray = cv2.resize(
        picture, size, interpolation=cv2.INTER_NEAREST if factor >= 1 else cv2.INTER_AREA
    )
    return fitted
