"""A picture of what a view pipeline does to some images."""

from collections.abc import Sequence

import cv2
import numpy as np

from ssl_ray.data.views import ViewPipeline

_GAP = 4  # pixels between pictures
_SMALLEST_CELL = 112
_PAPER = 255


def preview_grid(
    pipeline: ViewPipeline, images: Sequence[np.ndarray], seed: int = 0, epochs: int = 1
) -> np.ndarray:
    """One row per image: the original, then its views in epoch 0, 1, ...; (H, W, 3) uint8 RGB.

    images: decoded, (H, W, 3) uint8 RGB; image i is drawn as sample i. Views of tiny images are enlarged by whole
    factors without smoothing, so that their pixels show.
    """
    cell = max(pipeline.sizes)
    cell *= -(-_SMALLEST_CELL // cell)
    names = [f"view_{i}" for i in range(len(pipeline.sizes))]
    out = {name: np.zeros((1, *c.shape), c.dtype) for name, c in pipeline.columns.items()}
    step = cell + _GAP
    grid = np.full((len(images) * step + _GAP, (1 + epochs * len(names)) * step + _GAP, 3), _PAPER, np.uint8)
    for row, image in enumerate(images):
        pictures = [image]
        for epoch in range(epochs):
            pipeline.write_image(image, seed=seed, epoch=epoch, index=row, out=out, row=0)
            pictures += [out[name][0].copy() for name in names]
        for column, picture in enumerate(pictures):
            fitted = _fit(picture, cell)
            top = _GAP + row * step + (cell - fitted.shape[0]) // 2
            left = _GAP + column * step + (cell - fitted.shape[1]) // 2
            grid[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    return grid


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
