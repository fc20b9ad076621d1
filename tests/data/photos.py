"""Real photographs for tests: the two that come with scikit-learn, as RGB arrays and encoded."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image


@functools.cache
def photo(name: str = "china.jpg") -> np.ndarray:
    """(427, 640, 3) uint8 RGB; 'china.jpg' or 'flower.jpg'."""
    image = np.ascontiguousarray(load_sample_image(name))
    image.setflags(write=False)
    return image


def patch(name: str = "flower.jpg", size: int = 224) -> np.ndarray:
    """A (size, size, 3) part of a photograph with strong colours."""
    return photo(name)[100 : 100 + size, 200 : 200 + size].copy()


def encode(image: np.ndarray | Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """The image as PIL writes it."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
