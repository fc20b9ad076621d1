"""A picture of images and the views a network would see of them."""

import cv2
import numpy as np
from numpy.typing import NDArray

from ssl_ray.data.decode import BrokenImage, decode
from ssl_ray.data.sources.base import Source
from ssl_ray.data.views import ViewPipeline

UInt8 = NDArray[np.uint8]

_TILE = 112  # pixels; small views are enlarged by a whole factor, large ones scaled down
_GAP = 4
_PAPER = 255


def preview_grid(pipeline: ViewPipeline, images: list[UInt8], seed: int = 0, epochs: int = 1) -> UInt8:
    """One row per image: the original, then its views in epoch 0, 1, ... Returns (H, W, 3) uint8 RGB."""
    rows = []
    for index, image in enumerate(images):
        tiles = [_tile(image)]
        for epoch in range(epochs):
            out = {name: np.zeros((1, *c.shape), c.dtype) for name, c in pipeline.columns.items()}
            pipeline.write_image(image, seed=seed, epoch=epoch, index=index, out=out, row=0)
            tiles += [_tile(out[f"view_{i}"][0]) for i in range(len(pipeline.sizes))]
        rows.append(tiles)
    height = len(rows) * (_TILE + _GAP) + _GAP
    width = len(rows[0]) * (_TILE + _GAP) + 2 * _GAP
    grid = np.full((height, width, 3), _PAPER, np.uint8)
    for r, tiles in enumerate(rows):
        for c, tile in enumerate(tiles):
            # A wider gap sets the originals apart.
            x, y = _GAP + c * (_TILE + _GAP) + (_GAP if c else 0), _GAP + r * (_TILE + _GAP)
            grid[y : y + _TILE, x : x + _TILE] = tile
    return grid


def some_images(source: Source, count: int, seed: int = 0) -> list[UInt8]:
    """`count` readable images, spread over the source; fewer if there are not as many."""
    order = np.random.default_rng(seed).permutation(source.info.num_samples)[: 4 * count]
    images: list[UInt8] = []
    for index in order:
        try:
            images.append(decode(source.read(order[order == index])[0]))
        except BrokenImage:
            continue
        if len(images) == count:
            break
    return images


def _tile(image: UInt8) -> UInt8:
    """The image centred in a square tile, its proportions kept."""
    height, width = image.shape[:2]
    longest = max(height, width)
    scale = _TILE // longest if longest <= _TILE else _TILE / longest
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA)
    tile = np.full((_TILE, _TILE, 3), _PAPER, np.uint8)
    y, x = (_TILE - size[1]) // 2, (_TILE - size[0]) // 2
    tile[y : y + size[1], x : x + size[0]] = shown
    return tile
