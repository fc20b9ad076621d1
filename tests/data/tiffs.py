"""TIFF files of any pixels, written from the specification alone: no reader of ours or of others has a hand in them."""

import struct
import zlib
from typing import Any

import numpy as np

WHITE_IS_ZERO, GRAY, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5  # photometric interpretations
FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}  # of samples, by numpy's kind
TYPES = {"H": 3, "I": 4, "Q": 16}
OFFSETS, LENGTHS = (273, 324), (279, 325)  # of strips, of tiles
DEFLATE = 8


def tiff(*pages: np.ndarray, order: str = "<", big: bool = False, **options: Any) -> bytes:
    """One page for each array, (H, W) or (H, W, bands). order: "<" or ">". big: BigTIFF. options: as of `_page`."""
    number, inline = ("Q", 8) if big else ("I", 4)
    data = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}H", 43 if big else 42)
    data += struct.pack(f"{order}HH", 8, 0) if big else b""
    for pixels in pages:  # each as: where its directory is, its strips, its long values, its directory
        strips, tags = _page(pixels.astype(pixels.dtype.newbyteorder(order)), **options)
        offsets = np.cumsum([len(data) + inline, *map(len, strips)]).tolist()
        end = offsets.pop()
        tags |= {OFFSETS[322 in tags]: (number, *offsets), LENGTHS[322 in tags]: (number, *map(len, strips))}
        entries, values = b"", b""
        for tag, (form, *content) in sorted(tags.items()):
            packed = struct.pack(f"{order}{len(content)}{form}", *content)
            if len(packed) > inline:
                at = end + len(values)
                values += packed
                packed = struct.pack(order + number, at)
            entries += struct.pack(f"{order}HH{number}", tag, TYPES[form], len(content)) + packed.ljust(
                inline, b"\0"
            )
        count = struct.pack(f"{order}{'Q' if big else 'H'}", len(tags))
        data += struct.pack(order + number, end + len(values)) + b"".join(strips) + values + count + entries
    return data + struct.pack(order + number, 0)


def _page(
    pixels: np.ndarray,
    *,
    photometric: int = GRAY,
    extra: tuple[int, ...] = (),
    compression: int = 1,
    planar: bool = False,
    tile: int = 0,
    bits: int = 0,
    orientation: int = 1,
    subfile: int = 0,
    colours: np.ndarray | None = None,
    strip: bytes | None = None,
) -> tuple[list[bytes], dict[int, tuple[Any, ...]]]:
    """Strips or tiles, and tags: (type, values...). strip: what it holds. bits: of a sample, if few."""
    height, width = pixels.shape[:2]
    cube = pixels.reshape(height, width, -1)
    bands = cube.shape[2]
    planes = [cube[..., [i]] for i in range(bands)] if planar else [cube]
    if tile:
        padded = [np.pad(p, ((0, -height % tile), (0, -width % tile), (0, 0))) for p in planes]
        parts = [
            p[y : y + tile, x : x + tile]
            for p in padded
            for y in range(0, height, tile)
            for x in range(0, width, tile)
        ]
    else:
        parts = planes
    strips = [part.tobytes() for part in parts] if strip is None else [strip]
    if compression == DEFLATE:
        strips = [zlib.compress(part) for part in strips]
    tags: dict[int, tuple[Any, ...]] = {
        254: ("I", subfile),
        256: ("I", width),
        257: ("I", height),
        258: ("H", *[bits or 8 * pixels.itemsize] * bands),
        259: ("H", compression),
        262: ("H", photometric),
        274: ("H", orientation),
        277: ("H", bands),
        278: ("I", height),
        284: ("H", 2 if planar else 1),
        339: ("H", *[FORMATS[pixels.dtype.kind]] * bands),
    }
    if extra:
        tags[338] = ("H", *extra)
    if tile:
        tags |= {322: ("I", tile), 323: ("I", tile)}
    if colours is not None:  # (3, 2 ** bits)
        tags[320] = ("H", *colours.reshape(-1).tolist())
    return strips, tags
