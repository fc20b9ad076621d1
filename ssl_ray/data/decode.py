"""Encoded image bytes -> (H, W, 3) uint8 RGB, upright; what cannot be decoded whole is refused."""

import io
import struct
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, features
from PIL.TiffImagePlugin import TiffImageFile

MAX_PIXELS = 1 << 27
"""More than this (134 million pixels, 400 MB as RGB) is taken for a decompression bomb."""

# What PIL may be asked to read. Left out on purpose: formats that start other programs (EPS runs Ghostscript).
Image.init()
_FORMATS = tuple(
    {"JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA"} & Image.OPEN.keys()
)
_CODECS = {
    "WEBP": "webp",
    "AVIF": "avif",
    "JPEG2000": "jpg_2000",
}  # what PIL may lack though it knows the format
_ORIENTATION = 0x0112  # EXIF tag; values from 5 on swap height and width
_PNG = b"\x89PNG\r\n\x1a\n"
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers that carry the image's size
_EOI = b"\xff\xd9"
_TILE = 0x0142, 0x0143  # TIFF tags: width and height of a tile, which decoders allocate whole
_GREY = 128  # what libjpeg leaves where the data of a JPEG end too early
_FLAGS = {  # of cv2.imdecode by reduction; OpenCV has no RGB names for the smaller ones, but the same bits
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

# What decoders have to say of a broken image is said once, as the reason of `BrokenImage`.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings("ignore", module=r"PIL\.")


class BrokenImage(ValueError):
    """These bytes do not hold one whole image; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unread(bytes):
    """What a source gives in place of an image that it could not read: no bytes, and the reason."""

    reason: str

    @classmethod
    def because(cls, reason: str) -> "Unread":
        """No bytes, for this reason."""
        nothing = cls()
        nothing.reason = reason
        return nothing


def suffixes() -> tuple[str, ...]:
    """Suffixes, with the dot, of what is decoded on this machine. Left out: PFM, whose pixels have no agreed range."""
    lacking = {form for form, codec in _CODECS.items() if not features.check(codec)}
    forms = Image.registered_extensions() | {".mpo": "JPEG"}  # several JPEGs in one file: the first counts
    read = set(_FORMATS) - lacking
    return tuple(sorted(suffix for suffix, form in forms.items() if form in read and suffix != ".pfm"))


class Header(NamedTuple):
    """What an image says of itself before it is decoded. Height and width are those of the upright image."""

    height: int
    width: int
    jpeg: bool = False


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Size and kind, without decoding. Raises BrokenImage: no image, cut off, or more than max_pixels."""
    if data[:2] == b"\xff\xd8":
        header = _jpeg_header(data)
    elif data[:8] == _PNG:
        header = _png_header(data)
    else:
        header = _other_header(data, max_pixels)
    _check_size(header.height, header.width, max_pixels)
    return header


def open_image(data: bytes) -> Image.Image:
    """PIL's view of an image, not decoded yet. Raises BrokenImage where there is none."""
    if not data:
        raise BrokenImage(data.reason if isinstance(data, Unread) else "empty")
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BrokenImage(str(error)) from None
    except Exception:  # plug-ins raise whatever their parsers stumble on
        raise BrokenImage(f"no known image format (starts with {data[:8]!r})") from None


def _check_size(height: int, width: int, max_pixels: int, what: str = "") -> None:
    if not 0 < height * width <= max_pixels:
        raise BrokenImage(f"{what}{width} x {height} pixels, allowed are 1 to {max_pixels}")


def _jpeg_header(data: bytes) -> Header:
    """Walks the segments up to the first scan; then the end-of-image marker must follow somewhere."""
    position, height, width, orientation = 2, 0, 0, 1
    try:
        while (marker := data[position + 1]) != 0xDA:
            if data[position] != 0xFF:
                raise BrokenImage("damaged JPEG header")
            if marker == 0xFF:  # padding
                position += 1
                continue
            (length,) = struct.unpack_from(">H", data, position + 2)
            if marker in _SOF:
                height, width = struct.unpack_from(">HH", data, position + 5)
            elif marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
                orientation = _orientation(data[position + 4 : position + 2 + length])
            position += 2 + length
    except (IndexError, struct.error):
        raise BrokenImage("truncated JPEG: it ends within its header") from None
    if data[-2:] != _EOI and data.find(_EOI, position) < 0:
        raise BrokenImage("truncated JPEG: no end-of-image marker")
    if orientation >= 5:
        height, width = width, height
    return Header(height, width, jpeg=True)


def _orientation(segment: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(segment)
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # a damaged tag does not make the picture unreadable
        return 1


def _png_header(data: bytes) -> Header:
    """Walks the chunks: OpenCV allocates as many bytes as one claims to have, and only then looks for them."""
    if data[12:16] != b"IHDR":
        raise BrokenImage("damaged PNG header")
    position = len(_PNG)
    while (kind := data[position + 4 : position + 8]) != b"IEND":
        if len(kind) < 4:
            raise BrokenImage("truncated PNG: no end chunk")
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    width, height = struct.unpack_from(">II", data, 16)
    return Header(height, width)


def _other_header(data: bytes, max_pixels: int) -> Header:
    with open_image(data) as image:
        if isinstance(image, TiffImageFile):
            width, height = (image.tag_v2.get(tag, 1) for tag in _TILE)
            _check_size(height, width, max_pixels, "tiles of ")
        return Header(image.height, image.width)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, reduce: int = 1) -> np.ndarray:
    """Decodes to RGB, (H, W, 3) uint8, turned upright as its EXIF orientation says.

    Gray, palette, CMYK and 16-bit images become 8-bit RGB; alpha is dropped. reduce: 1, 2, 4 or 8; a JPEG is decoded at
    1/reduce of its size, sides rounded up, which costs less. OpenCV decodes; PIL takes what OpenCV cannot read.
    Raises BrokenImage for anything that is not one whole image of at most max_pixels.

    A JPEG whose data are damaged but complete in length decodes to a damaged picture: libjpeg does not tell.
    """
    return decode_known(data, read_header(data, max_pixels=max_pixels), reduce)


def decode_known(data: bytes, header: Header, reduce: int = 1) -> np.ndarray:
    """`decode` of data whose header has been read."""
    image = _opencv(data, reduce if header.jpeg else 1)
    if image is None:
        return _pil(data)
    if header.jpeg and _ends_in_grey(image) and _takes_more_data(data, image, reduce):
        raise BrokenImage("truncated JPEG: its data end before the picture does")
    return image


def _opencv(data: bytes, reduce: int) -> np.ndarray | None:
    """None where OpenCV cannot."""
    if data[4:12] == b"ftypavif":  # OpenCV does not turn these upright
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS[reduce])
    except cv2.error:
        return None


def _ends_in_grey(image: np.ndarray) -> bool:
    """Whether a corner (any, as the picture may have been turned) has the grey that libjpeg fills up with."""
    bottom, right = image.shape[0] - 1, image.shape[1] - 1
    return any(
        image.item(y, x, 0) == _GREY and (image[y and y - 1 :, x and x - 1 :][:2, :2] == _GREY).all()
        for y, x in ((bottom, right), (bottom, 0), (0, right), (0, 0))
    )


def _takes_more_data(data: bytes, image: np.ndarray, reduce: int) -> bool:
    """Whether bytes put in front of the end-of-image marker change the picture: then it was not complete.

    A decoder that has all its blocks skips such bytes. Needed only for pictures with a grey corner.
    """
    end = data.rfind(_EOI)
    longer = _opencv(data[:end] + bytes(range(1, 255)) + data[end:], reduce)
    return longer is None or not np.array_equal(longer, image)


def _pil(data: bytes) -> np.ndarray:
    with open_image(data) as image:
        if image.mode in ("F", "I") or image.mode.startswith("I;"):
            raise BrokenImage(f"pixels of mode {image.mode} have no agreed range; convert them to 8 bits")
        try:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
        except Exception as error:  # plug-ins raise whatever their parsers stumble on
            raise BrokenImage(f"cannot be decoded: {error}") from None
