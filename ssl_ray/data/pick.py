"""A few images to look at."""

import numpy as np

from ssl_ray.data.decode import BrokenImage, decode
from ssl_ray.data.sources.base import Source


def some_images(source: Source, count: int, seed: int = 0) -> list[np.ndarray]:
    """`count` readable images, (H, W, 3) uint8 RGB, spread over the source; fewer if there are not as many."""
    order = np.random.default_rng(seed).permutation(source.info.num_samples)[: 4 * count]
    images: list[np.ndarray] = []
    for data in source.read(order):
        if len(images) == count:
            break
        try:
            images.append(decode(data))
        except BrokenImage:
            continue
    return images
