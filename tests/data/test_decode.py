import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from ssl_ray.data.decode import BrokenImage, decode
from tests.data.photos import encode, photo

PHOTO = photo("flower.jpg")[100:260, 200:401]
PICTURE = Image.fromarray(PHOTO)


def with_alpha() -> Image.Image:
    picture = PICTURE.copy()
    picture.putalpha(Image.fromarray(np.tile(np.arange(201, dtype=np.uint8), (160, 1))))
    return picture


def pil(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


LOSSLESS = {
    "png": encode(PICTURE, "PNG"),
    "bmp": encode(PICTURE, "BMP"),
    "tiff": encode(PICTURE, "TIFF"),
    "webp": encode(PICTURE, "WEBP", lossless=True),
    "ppm": encode(PICTURE, "PPM"),
    "tga (PIL only)": encode(PICTURE, "TGA"),
    "png with alpha": encode(with_alpha(), "PNG"),
    "16-bit png": cv2.imencode(".png", PHOTO[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_pixels_back(kind: str) -> None:
    image = decode(LOSSLESS[kind])
    assert image.dtype == np.uint8
    assert np.array_equal(image, PHOTO)


LIKE_PIL = {
    # (bytes, largest difference): the same JPEG library gives the same pixels; CMYK is rounded otherwise.
    "jpeg": (encode(PICTURE, quality=90), 0),
    "progressive jpeg": (encode(PICTURE, progressive=True), 0),
    "gray jpeg": (encode(PICTURE.convert("L")), 0),
    "cmyk jpeg": (encode(PICTURE.convert("CMYK")), 1),
    "palette png": (encode(PICTURE.quantize(64), "PNG"), 0),
    "palette png with transparency": (encode(PICTURE.quantize(64), "PNG", transparency=3), 0),
    "1-bit png": (encode(PICTURE.convert("1"), "PNG"), 0),
    "gray png with alpha": (encode(with_alpha().convert("LA"), "PNG"), 0),
    "gif": (encode(PICTURE, "GIF"), 0),
    "cmyk tiff": (encode(PICTURE.convert("CMYK"), "TIFF"), 0),
}


@pytest.mark.parametrize("kind", LIKE_PIL)
def test_other_formats_agree_with_pil(kind: str) -> None:
    data, tolerance = LIKE_PIL[kind]
    image = decode(data)
    assert image.shape == PHOTO.shape
    assert np.abs(image.astype(int) - pil(data)).max() <= tolerance


def test_16_bit_gray_keeps_its_range() -> None:
    gray = np.asarray(PICTURE.convert("L"))
    image = decode(encode(Image.fromarray(gray.astype(np.uint16) * 257), "PNG"))
    assert np.array_equal(image, np.repeat(gray[..., None], 3, axis=2))


@pytest.mark.parametrize("reduce", [2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_decoding_is_the_smaller_picture(reduce: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(PHOTO[:, :200], quality=95, exif=exif)  # sides are multiples of 8
    full, small = decode(data), decode(data, reduce=reduce)
    assert small.shape[:2] == tuple(side // reduce for side in full.shape[:2])
    mean = cv2.resize(full, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - mean).mean() < 4  # the inverse DCT is not quite a box average


def test_sides_of_reduced_pictures_are_rounded_up() -> None:
    assert decode(encode(PICTURE), reduce=8).shape == (20, 26, 3)


def test_reduced_decoding_leaves_other_formats_alone() -> None:
    assert decode(LOSSLESS["png"], reduce=4).shape == PHOTO.shape


WHOLE = {
    "jpeg": encode(PICTURE),
    "gray jpeg": encode(PICTURE.convert("L")),
    "progressive jpeg": encode(PICTURE, progressive=True),
    "png": LOSSLESS["png"],
    "gif": encode(PICTURE, "GIF"),
    "bmp": LOSSLESS["bmp"],
    "webp": LOSSLESS["webp"],
    "tiff": LOSSLESS["tiff"],
}


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", WHOLE)
def test_truncated_files_are_refused(kind: str, kept: float) -> None:
    data = WHOLE[kind]
    with pytest.raises(BrokenImage):
        decode(data[: int(len(data) * kept)])


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["jpeg", "gray jpeg"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_truncated_jpeg_with_an_end_marker_is_refused(kind: str, kept: float, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(PICTURE.convert("L") if kind == "gray jpeg" else PICTURE, exif=exif)
    with pytest.raises(BrokenImage, match="truncated JPEG"):
        decode(data[: int(len(data) * kept)] + b"\xff\xd9")


def test_a_whole_jpeg_with_a_grey_corner_is_accepted() -> None:
    grey = PHOTO.copy()
    grey[-24:] = 128
    data = encode(grey, quality=95)
    image = decode(data)
    assert (image[-1, -1] == 128).all()
    assert np.array_equal(image, pil(data))


def test_bytes_after_the_end_of_a_jpeg_are_ignored() -> None:
    assert np.array_equal(decode(WHOLE["jpeg"] + bytes(100)), decode(WHOLE["jpeg"]))


def test_an_end_marker_inside_a_thumbnail_does_not_count() -> None:
    exif = Image.Exif()
    exif[0x9286] = encode(PICTURE.resize((16, 16)))  # any tag will do: the bytes stand in the header
    data = encode(PICTURE, exif=exif)
    decode(data)
    with pytest.raises(BrokenImage, match="no end-of-image marker"):
        decode(data[: int(len(data) * 0.8)])


def test_damaged_png_is_refused() -> None:
    data = bytearray(WHOLE["png"])
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    with pytest.raises(BrokenImage):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"x", "no known image format"),
        (b"<html>not found</html>", "no known image format"),
        (b"\xff\xd8", "truncated JPEG"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "truncated JPEG"),
        (b"\xff\xd8" + bytes(range(200)), "damaged JPEG header"),
        (np.random.default_rng(0).bytes(5000), "no known image format"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenImage, match=reason):
        decode(data)


def test_float_pixels_are_refused() -> None:
    gray = Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.float32))
    with pytest.raises(BrokenImage, match="32-bit floats"):
        decode(encode(gray, "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_the_pixel_limit_is_read_from_the_header(kind: str) -> None:
    data = encode(PICTURE, kind)
    decode(data, max_pixels=160 * 201)
    with pytest.raises(BrokenImage, match="201 x 160 pixels"):
        decode(data, max_pixels=160 * 201 - 1)


def test_the_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(BrokenImage("because")))
    assert isinstance(error, BrokenImage)
    assert error.reason == "because"
