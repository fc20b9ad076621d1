"""Image files that real folders hold: broken ones, too large ones, and whole ones of kinds that are rarely tried.

Those that stand for hostile files are small in what they claim, too: no decoder would mind them, and a limit that is
lowered shows that ours asks before one is called.
"""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60
SIDE = 100
LIMIT = HEIGHT * WIDTH
"""Pixels that are allowed where SIDE x SIDE are too many."""
RNG = np.random.default_rng(0)
PIXELS = cv2.GaussianBlur(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), (9, 9), 0) // 4 * 4
PICTURE = Image.fromarray(PIXELS)
GREY = PICTURE.convert("L")
FRAMES = [PICTURE, *(Image.new("RGB", PICTURE.size, colour) for colour in ("red", "blue"))]


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as PIL writes it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks: bytes, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A PNG of RGB bytes with these chunks between its header and its end."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def changed(data: bytes, position: int, form: str, *values: int) -> bytes:
    """The bytes with some numbers overwritten."""
    buffer = bytearray(data)
    struct.pack_into(form, buffer, position, *values)
    return bytes(buffer)


def tiff_with(data: bytes, **tags: int) -> bytes:
    """A little-endian TIFF with tags overwritten: t256=50000."""
    wanted = {int(name[1:]): value for name, value in tags.items()}
    (first,) = struct.unpack_from("<I", data, 4)
    for entry in range(struct.unpack_from("<H", data, first)[0]):
        position = first + 2 + 12 * entry
        (tag,) = struct.unpack_from("<H", data, position)
        if tag in wanted:
            data = changed(data, position, "<HHII", tag, 4, 1, wanted[tag])
    return data


def tiled_tiff(side: int) -> bytes:
    """A TIFF of WIDTH x HEIGHT in one empty tile of side x side."""
    fields = {256: WIDTH, 257: HEIGHT, 258: 8, 259: 1, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: 64}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4 + 64)


def animated(kind: str, **options: Any) -> bytes:
    """Three frames, PICTURE first."""
    return encode(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:], **options)


def rotated(orientation: int, kind: str, **options: Any) -> bytes:
    """PICTURE, with an EXIF tag that says which way is up."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(PICTURE, kind, exif=exif, **options)


def _too_large() -> dict[str, bytes]:
    """Files that say they are SIDE x SIDE pixels, more than LIMIT, and hold less."""
    jpeg, webp = encode(PICTURE, "JPEG"), encode(PICTURE, "WEBP", lossless=True)
    (bits,) = struct.unpack_from("<I", webp, at := webp.index(b"VP8L") + 9)
    return {
        "png": png(chunk(b"IDAT", zlib.compress(b"")), width=SIDE, height=SIDE),
        "jpeg": changed(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", SIDE, SIDE),
        "tiff": tiff_with(encode(PICTURE, "TIFF"), t256=SIDE, t257=SIDE),
        "tga (PIL only)": changed(encode(PICTURE, "TGA"), 12, "<HH", SIDE, SIDE),
        "gif": changed(encode(PICTURE, "GIF"), 6, "<HH", SIDE, SIDE),
        "bmp": changed(encode(PICTURE, "BMP"), 18, "<ii", SIDE, SIDE),
        "ppm": b"P6\n%d %d\n255\n" % (SIDE, SIDE) + bytes(100),
        "webp": changed(webp, at, "<I", bits & ~((1 << 28) - 1) | (SIDE - 1) << 14 | SIDE - 1),
        # OpenCV took memory for a whole tile: 800 MB for one of 28,000 x 28,000 pixels.
        "tiff with a large tile": tiled_tiff(SIDE),
    }


TOO_LARGE = _too_large()

WHOLE_JPEG = encode(PICTURE, "JPEG")
ROWS = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PIXELS))
BROKEN = {
    "empty": b"",
    # OpenCV took as much memory as a chunk claims to need before it looked for it: 4 GB for one of 0xF0000000 bytes.
    "chunk longer than its file": png(
        struct.pack(">I", 1000) + b"tEXt" + bytes(64), chunk(b"IDAT", zlib.compress(b""))
    ),
    "text": b"no image at all",
    "cut off": WHOLE_JPEG[: len(WHOLE_JPEG) // 2],
    "corrupt": png(chunk(b"IDAT", ROWS[: len(ROWS) // 2] + bytes(len(ROWS) // 2))),
    "of floats": encode(Image.fromarray(RNG.random((HEIGHT, WIDTH), np.float32)), "TIFF"),
    "a program (EPS)": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
}

ODD = {
    "gray.png": encode(GREY, "PNG"),
    "gray 16 bit.png": encode(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257), "PNG"),
    "16 bit.png": cv2.imencode(".png", PIXELS[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
    "16 bit.tif": cv2.imencode(".tif", PIXELS[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
    "cmyk.jpg": encode(PICTURE.convert("CMYK"), "JPEG"),
    "palette, a colour transparent.png": encode(PICTURE.quantize(64), "PNG", transparency=3),
    "palette, half transparent.png": encode(
        PICTURE.quantize(64), "PNG", transparency=bytes(range(0, 256, 4))
    ),
    "animated.png": animated("PNG"),
    "animated.webp": animated("WEBP", lossless=True),
    "animated gif.png": animated("GIF"),  # decoders go by content
    **{f"rotated {turn}.jpg": rotated(turn, "JPEG") for turn in range(1, 9)},
    "rotated.png": rotated(6, "PNG"),
    "rotated.webp": rotated(8, "WEBP"),
    "quotes ' \" & spaces.png": encode(PICTURE, "PNG"),
    "50%25 #1? été 写真 \N{PARTY POPPER}.png": encode(PICTURE, "PNG"),
}
