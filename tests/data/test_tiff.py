"""A TIFF is decoded to the pixels that it holds, or refused with what it is; never to others."""

import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_ray.data.decode import BrokenImage, decode, left_out, pixel_mode, read_header
from ssl_ray.data.source import open_dataset
from ssl_ray.data.tiff import directories
from ssl_ray.data.verify import verify
from tests.data.odd_images import GREY, HEIGHT, PICTURE, PIXELS, WIDTH, encode
from tests.data.tiffs import CMYK, DEFLATE, PALETTE, RGB, WHITE_IS_ZERO, tiff

L = np.asarray(GREY)
GREY_AS_RGB = np.repeat(L[..., None], 3, axis=2)
BAND = np.tile(np.arange(1, WIDTH + 1, dtype=np.uint8) * 4, (HEIGHT, 1))  # an alpha, or whatever
COLOURS = np.random.default_rng(1).integers(0, 256, (3, 256)) * 257
INKS = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)


def wide(pixels: np.ndarray) -> np.ndarray:
    """The same in 16 bits, over their whole range."""
    return pixels.astype(np.uint16) * 257


def inks_as_rgb() -> np.ndarray:
    """Each colour is what its ink and the black one leave of white, as PIL and libtiff have it."""
    left = 255.0 - INKS
    return left[..., :3] * left[..., 3:] / 255


# name -> pixels, options, what they show
KINDS: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]] = {
    "gray": (L, {}, GREY_AS_RGB),
    "gray 16": (wide(L), {}, GREY_AS_RGB),
    "0 is white": (255 - L, {"photometric": WHITE_IS_ZERO}, GREY_AS_RGB),
    "0 is white 16": (wide(255 - L), {"photometric": WHITE_IS_ZERO}, GREY_AS_RGB),
    "gray and alpha": (np.dstack([L, BAND]), {"extra": (2,)}, GREY_AS_RGB),
    "gray and alpha 16": (wide(np.dstack([L, BAND])), {"extra": (2,)}, GREY_AS_RGB),
    "RGB": (PIXELS, {"photometric": RGB}, PIXELS),
    "RGB 16": (wide(PIXELS), {"photometric": RGB}, PIXELS),
    "RGBA": (np.dstack([PIXELS, BAND]), {"photometric": RGB, "extra": (2,)}, PIXELS),
    "RGBA 16": (wide(np.dstack([PIXELS, BAND])), {"photometric": RGB, "extra": (2,)}, PIXELS),
    "RGB and another band": (np.dstack([PIXELS, BAND]), {"photometric": RGB, "extra": (0,)}, PIXELS),
    "RGB and another band 16": (wide(np.dstack([PIXELS, BAND])), {"photometric": RGB, "extra": (0,)}, PIXELS),
    "palette": (L, {"photometric": PALETTE, "colours": COLOURS}, (COLOURS[:, L] // 257).transpose(1, 2, 0)),
    "CMYK": (INKS, {"photometric": CMYK}, inks_as_rgb()),
    "CMYK 16": (wide(INKS), {"photometric": CMYK}, inks_as_rgb()),
}
# What writers do by default: everyone's files are of these.
COMMON = [{}, {"compression": DEFLATE}, {"order": ">"}, {"compression": DEFLATE, "tile": 32}]
RARE = ("0 is white 16", "gray and alpha 16")  # no decoder reads these in tiles
LAYOUTS = [
    {"order": order, "big": big, "planar": planar, "tile": tile, "compression": compression}
    for order, big, planar, tile, compression in itertools.product(
        "<>", (False, True), (False, True), (0, 16, 32), (1, DEFLATE)
    )
]


def shown(data: bytes, expected: np.ndarray) -> None:
    image = decode(data)
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= (0 if expected.dtype.kind == "u" else 1)
    assert read_header(data)[:2] == image.shape[:2]


@pytest.mark.parametrize(
    ("kind", "layout"), [(k, o) for k in KINDS for o in COMMON if not (k in RARE and "tile" in o)], ids=str
)
def test_pixels_are_those_of_the_file(kind: str, layout: dict[str, Any]) -> None:
    pixels, options, expected = KINDS[kind]
    shown(tiff(pixels, **options, **layout), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_in_no_layout_they_are_others(kind: str) -> None:
    """Of 48 layouts some are read by no decoder, and then the reason says what they are."""
    pixels, options, expected = KINDS[kind]
    refused = []
    for layout in LAYOUTS:
        data = tiff(pixels, **options, **layout)
        try:
            shown(data, expected)
        except BrokenImage as error:
            refused.append(error.reason)
    start = f"TIFF of {pixels.size // (HEIGHT * WIDTH)} band"
    assert all(reason.startswith(start) for reason in refused)
    assert len(refused) <= (40 if kind in RARE else 24), len(refused)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_fill_the_range(bits: int) -> None:
    levels = 2**bits - 1
    few = L >> (8 - bits)
    width = -(-WIDTH // 8) * 8
    padded = np.pad(few, ((0, 0), (0, width - WIDTH)))
    packed = np.packbits((padded[..., None] >> np.arange(bits)[::-1]) & 1, axis=None)
    assert width == WIDTH + 4  # so that rows end in bytes of their own
    rows = packed.reshape(HEIGHT, -1)[:, : -(-WIDTH * bits // 8)]
    data = tiff(few.astype(np.uint8), bits=bits, strip=rows.tobytes())
    assert np.array_equal(decode(data), np.repeat((few * (255 // levels))[..., None], 3, axis=2))


def test_12_bits_keep_their_range() -> None:
    pairs = (L.astype(np.uint16) * 16).reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    data = tiff(L, bits=12, strip=packed.astype(np.uint8).tobytes())
    assert np.array_equal(decode(data), GREY_AS_RGB)


def test_colours_multiplied_by_their_alpha_are_divided_again() -> None:
    """A TIFF says whether they are; the picture is the same."""
    alpha = np.maximum(BAND, 100)[..., None].astype(float)
    multiplied = np.dstack([(PIXELS * alpha / 255).round().astype(np.uint8), alpha.astype(np.uint8)])
    image = decode(tiff(multiplied, photometric=RGB, extra=(1,)))
    assert np.abs(image.astype(int) - PIXELS).max() <= 3  # half a level of 100 in 255


# What is no picture of one meaning, or no decoder reads: name -> (bytes, what the reason says of them)
REFUSED = {
    "int8": (tiff(L.astype(np.int8)), "1 band of 8-bit signed integers"),
    "int16": (tiff(L.astype(np.int16) - 500), "1 band of 16-bit signed integers"),
    "int16 RGB": (tiff(PIXELS.astype(np.int16), photometric=RGB), "3 bands of 16-bit signed integers"),
    "int32": (tiff(L.astype(np.int32)), "32-bit signed integers"),
    "uint32": (tiff(L.astype(np.uint32)), "32-bit unsigned integers.*samples of that size are not read"),
    "half floats": (tiff(L.astype(np.float16)), "16-bit floats"),
    "floats": (tiff(L.astype(np.float32)), "32-bit floats"),
    "RGB floats": (tiff(PIXELS / 255, photometric=RGB), "3 bands of 64-bit floats, photometric RGB"),
    "complex": (tiff(L.astype(np.complex64)), "64-bit complex floats"),
    "2 bands": (tiff(np.dstack([L, BAND])), "2 bands of 8-bit.*which bands are the picture is not said"),
    "3 bands, gray": (tiff(PIXELS), "3 bands of 8-bit unsigned integers, photometric MINISBLACK"),
    "3 bands, gray, planes": (tiff(wide(PIXELS), planar=True), "3 bands of 16-bit.*MINISBLACK.*planar"),
    "5 bands": (tiff(np.dstack([PIXELS, BAND, BAND])), "5 bands .* which bands are the picture"),
    "13 bands": (tiff(np.dstack([wide(PIXELS)] * 4 + [wide(L)])), "13 bands of 16-bit"),
    "3 bands, CMYK": (tiff(PIXELS, photometric=CMYK), "3 bands.*CMYK.*colours need other bands"),
    "filters of a sensor": (tiff(L, photometric=32803), "photometric 32803.*the colours .* are not read"),
    "bits differ": (tiff(L, bits=5), "5-bit unsigned"),
    "JPEG 2000": (tiff(L, compression=34712, strip=encode(GREY, "JPEG2000")), "JPEG 2000: no decoder knows"),
    "JPEG 2000 RGB": (
        tiff(PIXELS, compression=33005, photometric=RGB, strip=encode(PICTURE, "JPEG2000")),
        "3 bands of 8-bit unsigned integers, photometric RGB, JPEG 2000: no decoder knows",
    ),
    "JPEG XL": (tiff(L, compression=50002, strip=bytes(99)), "JPEG XL: no decoder knows"),
    "PNG": (
        tiff(PIXELS, compression=34933, photometric=RGB, strip=encode(PICTURE, "PNG")),
        ", PNG: no decoder knows",
    ),
    "LERC": (tiff(L, compression=34887, strip=bytes(99)), "LERC: no decoder knows"),
    "a compression of one's own": (
        tiff(L, compression=65000, strip=bytes(99)),
        "compression 65000: no decoder",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_picture_is_refused_with_what_it_is(kind: str) -> None:
    data, reason = REFUSED[kind]
    with pytest.raises(BrokenImage, match=f"^TIFF of .*{reason}") as caught:
        decode(data)
    assert "convert" in caught.value.reason or "write" in caught.value.reason
    assert "\n" not in caught.value.reason


def test_what_is_left_out_is_said() -> None:
    page, other = PIXELS, 255 - PIXELS
    several = "more than one page: the first is used"
    assert left_out(tiff(page, photometric=RGB)) == ""
    assert left_out(tiff(page, other, photometric=RGB)) == several
    assert np.array_equal(decode(tiff(page, other, photometric=RGB, order=">", big=True)), page)
    smaller = tiff(page, page[::2, ::2], photometric=RGB, subfile=1)  # as a map has them: copies, no pages
    assert left_out(smaller) == ""
    four = np.dstack([PIXELS, BAND])
    assert left_out(tiff(four, photometric=RGB, extra=(2,))) == ""
    bands = "bands beyond the colours that are no alpha: they are not used"
    for extra in ((0,), ()):  # by default it is of no kind
        data = tiff(four, photometric=RGB, extra=extra)
        assert np.array_equal(decode(data), PIXELS)
        assert left_out(data) == bands
    assert left_out(tiff(four, four, photometric=RGB, extra=(0,))) == f"{several}; {bands}"


def test_verify_says_it_once_for_all_images(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.tif").write_bytes(tiff(PIXELS, PIXELS, photometric=RGB))
    (tmp_path / "3.tif").write_bytes(tiff(wide(np.dstack([L, BAND])), extra=(2,)))  # PIL does not know these
    report = verify(open_dataset(str(tmp_path)).train)
    assert report.broken == []
    assert report.left_out == {
        "more than one page: the first is used": [str(tmp_path / f"{i}.tif") for i in range(3)]
    }
    assert report.modes == {"RGB": 3, "I;16A": 1}


def test_modes_are_pil_s() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        assert pixel_mode(encode(PICTURE.convert(mode), "TIFF")) == mode
    assert pixel_mode(encode(Image.fromarray(wide(L)), "TIFF")) == "I;16"


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_pil_takes_for_a_tiff_is_one(order: str) -> None:
    """Else such a file would go round what is asked of the others."""

    def mistaken(data: bytes) -> bytes:
        return data[:2] + data[3:1:-1] + data[4:]

    assert np.array_equal(decode(mistaken(tiff(PIXELS, photometric=RGB, order=order))), PIXELS)
    with pytest.raises(BrokenImage, match="8-bit signed integers"):
        decode(mistaken(tiff(L.astype(np.int8), order=order)))
    with pytest.raises(BrokenImage, match="tiles of 80 x 80 pixels"):
        decode(mistaken(tiff(L, tile=80, order=order)), max_pixels=HEIGHT * WIDTH)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_damaged_directory_is_refused(order: str, big: bool) -> None:
    data = tiff(PIXELS, photometric=RGB, order=order, big=big)
    for length in range(4, len(data), 97):
        with pytest.raises(BrokenImage, match="TIFF"):
            decode(data[:length])
    with pytest.raises(BrokenImage, match="no page"):
        decode(data[: 8 if big else 4] + bytes(99))


@pytest.mark.parametrize("kind", [1, 3, 4, 6, 8, 9])
def test_a_tile_is_too_large_in_whatever_type_it_is_written(kind: int) -> None:
    """Decoders take any whole number, and memory for the tile that it says."""
    data = bytearray(tiff(L, tile=80))
    entries = [i for i in range(len(data) - 12) if data[i : i + 2] in (b"\x42\x01", b"\x43\x01")]
    for at in entries:
        assert data[at + 2 : at + 8] == struct.pack("<HI", 4, 1)
        data[at + 2 : at + 4] = struct.pack("<H", kind)
    assert len(entries) == 2
    with pytest.raises(BrokenImage, match=f"tiles of 80 x 80 pixels, allowed are 1 to {HEIGHT * WIDTH}"):
        decode(bytes(data), max_pixels=HEIGHT * WIDTH)


def test_a_tag_that_is_no_number_is_damaged() -> None:
    data = bytearray(tiff(L, tile=80))
    at = data.index(b"\x42\x01")
    data[at + 2 : at + 4] = struct.pack("<H", 11)  # a float
    with pytest.raises(BrokenImage, match="its tag 322 holds no whole numbers"):
        decode(bytes(data))


def test_pages_that_lead_round_end() -> None:
    data = bytearray(tiff(L, L[::2, ::2], subfile=1))
    data[-4:] = data[4:8]  # after the last page comes the first
    assert len(list(directories(bytes(data)))) == 2
    assert left_out(bytes(data)) == ""


def test_directories_that_overlap_are_damaged() -> None:
    """Else some kilobytes could hold thousands of long ones."""
    entries = 20
    data = bytearray(b"II*\0" + struct.pack("<I", 8) + bytes(300))
    for start, following in ((8, 10), (10, 0)):
        struct.pack_into("<H", data, start, entries)
        struct.pack_into("<I", data, start + 2 + 12 * entries, following)
    with pytest.raises(ValueError, match="overlap"):
        list(directories(bytes(data)))
