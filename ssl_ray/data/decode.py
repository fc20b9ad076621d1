"""Encoded image bytes -> (H, W, 3) uint8 RGB, upright; what cannot be decoded whole is refused."""

import io
import re
import struct
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, features

from ssl_ray.data.tiff import Tiff, is_tiff

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
_JPEG_LS = 0xF7  # its marker in place of those
# What OpenCV reads right, and faster than PIL: PPM of whole bytes, as it does not scale by the maximum; BMP, but for
# those of five bits a colour, of which it leaves the upper end of the range empty.
_FOR_OPENCV = re.compile(rb"P[56]\s+\d+\s+\d+\s+(255|65535)\s|BM.{26}(?!\x10\0)", re.DOTALL)
# Of JPEG 2000, before its sizes; 42 bytes on, the top bit says that samples are signed.
_SIZ = b"\xff\x4f\xff\x51"
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
    """What an image says of itself before it is decoded. Height and width are those of the upright image.

    opencv: whether OpenCV is asked first; it is fast, and wrong about some kinds. pil: whether PIL is asked then.
    """

    height: int
    width: int
    jpeg: bool = False
    opencv: bool = True
    pil: bool = True


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Size and kind, without decoding. Raises BrokenImage: no image, cut off, or more than max_pixels."""
    if data[:2] == b"\xff\xd8":
        header = _jpeg_header(data)
    elif data[:8] == _PNG:
        header = _png_header(data)
    elif is_tiff(data):
        header = _tiff_header(data, max_pixels)
    else:
        header = _other_header(data)
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
        starts = f"no known image format (starts with {data[:8]!r})"
        raise BrokenImage("no decoder knows such a TIFF" if is_tiff(data) else starts) from None


def pixel_mode(data: bytes) -> str:
    """PIL's name for the pixels of an image that `decode` reads: L, RGB, RGBA, I;16, ..."""
    if is_tiff(data):  # of which PIL does not know all
        return Tiff(data).mode
    with open_image(data) as image:
        return image.mode


def left_out(data: bytes) -> str:
    """What `decode` leaves aside of an image that it decodes, in words; "" for nothing. Alpha does not count."""
    if is_tiff(data):
        return Tiff(data).left_out
    if data[:8] == _PNG:
        may_move = data.find(b"acTL", 0, max(0, data.find(b"IDAT"))) >= 0
    elif data[:4] == b"RIFF":
        may_move = data[12:16] == b"VP8X" and data[20] & 2 != 0
    else:
        may_move = data[:4] == b"GIF8" or data[4:12] == b"ftypavis"
    if may_move:
        with open_image(data) as image:
            if getattr(image, "is_animated", False):
                return "more than one frame: the first is used"
    return ""


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
                if (bits := data[position + 4]) != 8:
                    raise BrokenImage(f"JPEG of {bits}-bit samples; only 8 bits are read, convert it")
                height, width = struct.unpack_from(">HH", data, position + 5)
            elif marker == _JPEG_LS:
                raise BrokenImage("JPEG-LS is not read; convert it to PNG")
            elif marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
                orientation = _orientation(data[position + 4 : position + 2 + length])
            position += 2 + length
    except (IndexError, struct.error):
        raise BrokenImage("truncated JPEG: it ends within its header") from None
    if data[-2:] != _EOI and data.find(_EOI, position) < 0:
        raise BrokenImage("truncated JPEG: no end-of-image marker")
    return Header(*_upright(height, width, orientation), jpeg=True)


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
    position, orientation, animated = len(_PNG), 1, False
    while (kind := data[position + 4 : position + 8]) != b"IEND":
        if len(kind) < 4:
            raise BrokenImage("truncated PNG: no end chunk")
        length = int.from_bytes(data[position : position + 4], "big")
        if kind == b"eXIf":
            orientation = _orientation(data[position + 8 : position + 8 + length])
        animated |= kind == b"acTL"
        position += 12 + length
    width, height = struct.unpack_from(">II", data, 16)
    if animated:  # OpenCV does not turn these upright
        return _other_header(data)
    return Header(*_upright(height, width, orientation))


def _tiff_header(data: bytes, max_pixels: int) -> Header:
    try:
        tiff = Tiff(data)
    except ValueError as error:
        raise BrokenImage(str(error)) from None
    if tiff.refusal:
        raise BrokenImage(tiff.refusal)
    _check_size(*tiff.tile, max_pixels, "tiles of ")
    return Header(*tiff.size, opencv=tiff.for_opencv, pil=tiff.for_pil)


def _other_header(data: bytes) -> Header:
    """PIL reads most of these: OpenCV swaps colours of AVIF and does not turn upright what moves."""
    with open_image(data) as image:
        height, width = image.height, image.width
        if image.format == "WEBP" and not getattr(image, "is_animated", False):
            return Header(*_upright(height, width, _orientation(image.info.get("exif", b""))))
        if image.format == "JPEG2000" and (at := data.find(_SIZ)) >= 0 and data[at + 42] & 0x80:
            raise BrokenImage("JPEG 2000 of signed samples has no agreed range; convert it to unsigned ones")
        try:
            orientation = int(image.getexif().get(_ORIENTATION, 1))
        except Exception:  # a damaged tag does not make the picture unreadable
            orientation = 1
        fast = _FOR_OPENCV.match(data) is not None
        return Header(*_upright(height, width, orientation), opencv=fast)


def _upright(height: int, width: int, orientation: int) -> tuple[int, int]:
    return (width, height) if 5 <= orientation <= 8 else (height, width)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, reduce: int = 1) -> np.ndarray:
    """Decodes to RGB, (H, W, 3) uint8, turned upright as its EXIF orientation says.

    Gray, palette, CMYK and 16-bit images become 8-bit RGB; alpha is dropped. reduce: 1, 2, 4 or 8; a JPEG is decoded at
    1/reduce of its size, sides rounded up, which costs less. OpenCV decodes what it reads right, PIL the rest. Of an
    animation or of several pages it is the first, see `left_out`.
    Raises BrokenImage for anything that is not one whole image of at most max_pixels.

    A JPEG whose data are damaged but complete in length decodes to a damaged picture: libjpeg does not tell.
    """
    return decode_known(data, read_header(data, max_pixels=max_pixels), reduce)


def decode_known(data: bytes, header: Header, reduce: int = 1) -> np.ndarray:
    """`decode` of data whose header has been read."""
    image = _opencv(data, reduce if header.jpeg else 1) if header.opencv else None
    if image is None:
        return _pil(data, header)
    if header.jpeg and _ends_in_grey(image) and _takes_more_data(data, image, reduce):
        raise BrokenImage("truncated JPEG: its data end before the picture does")
    return image


def _opencv(data: bytes, reduce: int) -> np.ndarray | None:
    """None where OpenCV cannot."""
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


def _pil(data: bytes, header: Header) -> np.ndarray:
    tiff = Tiff(data) if is_tiff(data) else None
    try:
        if not header.pil:
            raise BrokenImage("no decoder reads such a TIFF right")
        with open_image(data) as image:
            return _rgb(image, tiff.bits if tiff else 16)
    except Exception as error:  # plug-ins raise whatever their parsers stumble on
        reason = error.reason if isinstance(error, BrokenImage) else f"cannot be decoded: {error}"
    if tiff:
        reason = f"{tiff}: {reason}; if the file is whole, convert it to 8-bit RGB or gray"
    raise BrokenImage(reason)


def _rgb(image: Image.Image, bits: int) -> np.ndarray:
    """bits: that a sample has where PIL does not make 8 of them."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise BrokenImage(f"pixels of mode {image.mode} have no agreed range; convert them to 8 bits")
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    if image.mode == "La":  # multiplied by its alpha, which PIL takes back on the way to this mode alone
        image = image.convert("LA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
