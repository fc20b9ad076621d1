"""Every format, still and animated, in every kind of pixels and every orientation that it can have, as one picture."""

import struct
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ssl_ray.data.decode import BrokenImage, decode, left_out, read_header
from tests.data.odd_images import GREY, HEIGHT, PICTURE, PIXELS, WIDTH, changed, chunk, encode
from tests.data.tiffs import DEFLATE, GRAY, RGB, WHITE_IS_ZERO, tiff

ALPHA = Image.fromarray(np.tile(np.arange(1, WIDTH + 1, dtype=np.uint8) * 4, (HEIGHT, 1)))
ORIENTATION = 0x0112


def with_alpha(image: Image.Image) -> Image.Image:
    """The picture beneath is to be seen: what is dropped is the alpha."""
    copy = image.copy()
    copy.putalpha(ALPHA)
    return copy


GRAY_AS_RGB = np.repeat(np.asarray(GREY)[..., None], 3, axis=2)
WIDE = np.asarray(GREY).astype(np.uint16) * 257
PALETTE = PICTURE.quantize(64)
# name -> the image, and what it shows
KINDS: dict[str, tuple[Image.Image, np.ndarray]] = {
    "gray": (GREY, GRAY_AS_RGB),
    "RGB": (PICTURE, PIXELS),
    "RGBA": (with_alpha(PICTURE), PIXELS),
    "gray and alpha": (with_alpha(GREY), GRAY_AS_RGB),
    "palette": (PALETTE, np.asarray(PALETTE.convert("RGB"))),
    "16 bit": (Image.fromarray(WIDE), GRAY_AS_RGB),
    "1 bit": (GREY.convert("1"), np.asarray(GREY.convert("1").convert("RGB"))),
    "CMYK": (PICTURE.convert("CMYK"), np.asarray(PICTURE.convert("CMYK").convert("RGB"))),
}
OPTIONS = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 95}, "JPEG": {"quality": 95}}
LOSSY = {"AVIF": 12, "JPEG": 12, "GIF": 12}  # mean difference from what was written


def written(form: str, kind: str, animated: bool, exif: Image.Exif | None) -> bytes:
    """By PIL. The other frames of an animation are of other colours and sizes."""
    image = KINDS[kind][0]
    options = OPTIONS.get(form, {}) | ({} if exif is None else {"exif": exif})
    if animated:
        others = [image.transpose(Image.Transpose.ROTATE_180), Image.new(image.mode, image.size)]
        options |= {"save_all": True, "append_images": others, "duration": 100}
    return encode(image, form, **options)


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What is shown of stored pixels, from the EXIF standard: "row 0 is the visual ..., column 0 the visual ..."."""
    return {
        1: stored,
        2: stored[:, ::-1],  # top, right
        3: stored[::-1, ::-1],  # bottom, right
        4: stored[::-1],  # bottom, left
        5: stored.swapaxes(0, 1),  # left, top
        6: stored[::-1].swapaxes(0, 1),  # right, top
        7: stored[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: stored[:, ::-1].swapaxes(0, 1),  # left, bottom
    }[orientation]


def tag(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


# What PIL writes of each format; those in the second table can say which way is up, and can move (a TIFF has pages).
PLAIN = {
    "GIF": ("gray", "RGB", "RGBA", "palette", "1 bit"),
    "BMP": ("gray", "RGB", "RGBA", "palette", "1 bit"),
    "PPM": ("gray", "RGB", "16 bit", "1 bit"),
    "TGA": ("gray", "RGB", "RGBA", "gray and alpha", "palette", "1 bit"),
    "JPEG2000": ("gray", "RGB", "RGBA", "gray and alpha", "16 bit"),
}
TURNING = {
    "JPEG": ("gray", "RGB", "CMYK"),
    "PNG": ("gray", "RGB", "RGBA", "gray and alpha", "palette", "16 bit", "1 bit"),
    "WEBP": ("RGB", "RGBA"),
    "AVIF": ("gray", "RGB", "RGBA"),
    "TIFF": tuple(KINDS),
}
MOVING = ("PNG", "WEBP", "AVIF", "TIFF", "GIF")


def cases() -> list[Any]:
    return [
        pytest.param(
            form,
            kind,
            animated,
            id=f"{form} {kind}" + " animated" * animated,
            marks=pytest.mark.skipif(form == "AVIF" and "AVIF" not in Image.SAVE, reason="PIL without AVIF"),
        )
        for form, kinds in (PLAIN | TURNING).items()
        for kind in kinds
        for animated in (False, True)
        if form in MOVING or not animated
    ]


@pytest.mark.parametrize(("form", "kind", "animated"), cases())
def test_every_kind_in_every_orientation(form: str, kind: str, animated: bool) -> None:
    expected = KINDS[kind][1]
    data = written(form, kind, animated, None)
    upright = decode(data)
    assert upright.shape == (HEIGHT, WIDTH, 3)
    assert upright.dtype == np.uint8
    assert np.abs(upright.astype(int) - expected).mean() <= LOSSY.get(form, 0)
    assert read_header(data)[:2] == (HEIGHT, WIDTH)
    assert bool(left_out(data)) == animated
    turns = form in TURNING and (form, animated) != ("AVIF", True)  # PIL cannot write these
    for orientation in range(1, 9) if turns else ():
        data = written(form, kind, animated, tag(orientation))
        shown = turned(upright, orientation)
        assert np.array_equal(decode(data), shown), orientation
        assert read_header(data)[:2] == shown.shape[:2], orientation


def png_16(orientation: int) -> bytes:
    data: bytes = cv2.imencode(".png", PIXELS[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    return data[:33] + chunk(b"eXIf", tag(orientation).tobytes()[6:]) + data[33:]  # after the header


def tiff_of(pixels: np.ndarray, photometric: int = RGB, **options: Any) -> Callable[[int], bytes]:
    return lambda orientation: tiff(pixels, photometric=photometric, orientation=orientation, **options)


WIDE_RGB = PIXELS.astype(np.uint16) * 257
WIDE_ALPHA = np.asarray(ALPHA).astype(np.uint16) * 257
BY_OTHERS = {
    "PNG, RGB of 16 bits": (png_16, PIXELS),
    "TIFF, RGB of 16 bits": (tiff_of(WIDE_RGB), PIXELS),
    "TIFF, RGB of 16 bits in planes": (tiff_of(WIDE_RGB, planar=True), PIXELS),
    "TIFF, RGB of 16 bits in tiles": (tiff_of(WIDE_RGB, tile=32, compression=DEFLATE), PIXELS),
    "TIFF, RGBA in tiles": (tiff_of(np.dstack([PIXELS, ALPHA]), extra=(2,), tile=16), PIXELS),
    "TIFF, RGB and another band": (tiff_of(np.dstack([PIXELS, ALPHA]), extra=(0,), order=">"), PIXELS),
    "TIFF, gray of 16 bits in tiles": (tiff_of(WIDE, GRAY, tile=32), GRAY_AS_RGB),
    "TIFF, gray of 16 bits, big-endian": (tiff_of(WIDE, GRAY, order=">"), GRAY_AS_RGB),
    "TIFF, gray and alpha of 16 bits": (
        tiff_of(np.dstack([WIDE, WIDE_ALPHA]), GRAY, extra=(2,)),
        GRAY_AS_RGB,
    ),
    "TIFF, 0 is white, of 16 bits": (tiff_of(65535 - WIDE, WHITE_IS_ZERO), GRAY_AS_RGB),
    "BigTIFF of a big-endian machine": (tiff_of(PIXELS, big=True, order=">"), PIXELS),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", BY_OTHERS)
def test_what_pil_does_not_write(kind: str, orientation: int) -> None:
    write, pixels = BY_OTHERS[kind]
    data = write(orientation)
    shown = turned(pixels, orientation)
    assert np.array_equal(decode(data), shown)
    assert read_header(data)[:2] == shown.shape[:2]


@pytest.mark.parametrize("maximum", [1, 7, 255, 1000, 65535])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("bands", [1, 3])
def test_ppm_of_any_maximum_fills_the_range(maximum: int, plain: bool, bands: int) -> None:
    levels = np.random.default_rng(0).integers(0, maximum + 1, (HEIGHT, WIDTH, bands))
    kind = {(1, True): b"P2", (3, True): b"P3", (1, False): b"P5", (3, False): b"P6"}[bands, plain]
    body = levels.astype("u1" if maximum < 256 else ">u2").tobytes()
    data = b"%s\n%d %d\n%d\n" % (kind, WIDTH, HEIGHT, maximum) + (
        b" ".join(b"%d" % level for level in levels.ravel().tolist()) if plain else body
    )
    image = decode(data)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(image - levels * 255 / maximum).max() <= 1  # rounded, or cut off to the upper byte


def test_bmp_of_five_bits_a_colour_fills_the_range() -> None:
    levels = np.random.default_rng(0).integers(0, 32, (HEIGHT, WIDTH, 3), np.uint16)
    rows = (levels[..., 0] << 10 | levels[..., 1] << 5 | levels[..., 2]).astype("<u2")[::-1].tobytes()
    info = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 16, 0, len(rows), 0, 0, 0, 0)
    data = b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + info + rows
    assert np.abs(decode(data) - levels * 255 / 31).max() <= 1


def test_jpeg_2000_of_16_bits_keeps_its_range() -> None:
    lossless = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
    data = cv2.imencode(".jp2", WIDE, lossless)[1].tobytes()
    assert np.abs(decode(data).astype(int) - GRAY_AS_RGB).max() <= 1


def test_jpeg_2000_of_signed_samples_is_refused() -> None:
    data = encode(GREY, "JPEG2000")
    signed = changed(data, data.index(b"\xff\x4f\xff\x51") + 42, "B", 0x80 | 7)
    with pytest.raises(BrokenImage, match="signed samples"):
        decode(signed)


@pytest.mark.parametrize("bits", [12, 16])
def test_a_jpeg_of_more_bits_is_refused_with_their_number(bits: int) -> None:
    data = encode(PICTURE, "JPEG")
    with pytest.raises(BrokenImage, match=f"JPEG of {bits}-bit samples"):
        decode(changed(data, data.index(b"\xff\xc0") + 4, "B", bits))
