"""Encoded image bytes -> (H, W, 3) uint8 RGB, upright; what cannot be decoded whole is refused."""

import io
import struct
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 1 << 27
"""More than this (134 million pixels, 400 MB as RGB) is taken for a decompression bomb."""


class BrokenImage(ValueError):
    """These bytes do not hold one whole image; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes to RGB, (H, W, 3) uint8, turned upright as its EXIF orientation says."""
    if not data:
        raise BrokenImage("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as header:
                width, height = header.size
    except Exception as error:
        raise BrokenImage(f"not an image: {error}") from None
    if width * height > max_pixels:
        raise BrokenImage(f"{width} x {height} pixels, more than {max_pixels}")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise BrokenImage("cannot be decoded")
    if data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < 0:
        raise BrokenImage("truncated JPEG")
    return image
