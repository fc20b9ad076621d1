"""Pictures as text that stands in a page: single ones, and many in one sheet."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

PIXELS = 64
"""Up to this side a picture keeps its pixels exactly, and the page shows them as squares."""
_LARGEST = 160  # side of a picture in the page
_QUALITY = 78


@dataclass(frozen=True)
class Picture:
    """uri: data: URI. width, height: pixels of it. pixelated: enlarge without smoothing. caption: may be empty."""

    uri: str
    width: int
    height: int
    pixelated: bool
    caption: str = ""


@dataclass(frozen=True)
class Sheet:
    """Many pictures of one size in one: number i is in column i % columns, row i // columns; cell: side, pixels."""

    uri: str
    cell: int
    columns: int
    width: int
    height: int


def picture(image: np.ndarray, caption: str = "", largest: int = _LARGEST) -> Picture:
    """An image, (H, W, 3) uint8 RGB, of at most `largest` pixels a side in the page."""
    shown = _shrink(image, largest)
    height, width = shown.shape[:2]
    small = max(height, width) <= PIXELS
    return Picture(_encode(shown, lossless=small), width, height, small, caption)


def sheet(images: Sequence[np.ndarray], cell: int) -> Sheet:
    """A sheet of square images, (S, S, 3) uint8 RGB, each shrunk to `cell` pixels."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    whole = np.zeros((rows * cell, columns * cell, 3), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * cell, i % columns * cell
        whole[top : top + cell, left : left + cell] = cv2.resize(
            image, (cell, cell), interpolation=cv2.INTER_AREA
        )
    return Sheet(_encode(whole, lossless=False), cell, columns, columns * cell, rows * cell)


def from_file(file: Path, caption: str = "") -> Picture | None:
    """A picture file as it is; None if it is none."""
    image = cv2.imread(str(file))
    return None if image is None else picture(np.ascontiguousarray(image[..., ::-1]), caption, largest=1200)


def _shrink(image: np.ndarray, largest: int) -> np.ndarray:
    height, width = image.shape[:2]
    factor = largest / max(height, width)
    if factor >= 1:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    smaller: np.ndarray = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return smaller


def _encode(image: np.ndarray, *, lossless: bool) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "WEBP", lossless=lossless, quality=_QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
