"""What the directory of a TIFF says of its pixels: whether they are one picture, and who can read it."""

import struct
from collections.abc import Iterator
from functools import cached_property

# Tags that are read; of others, a TIFF may hold as many and as long ones as it likes.
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_ORIENTATION, _BANDS, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT = 274, 277, 284, 322, 323
_EXTRA, _FORMAT, _DEPTH = 338, 339, 32997
_DEFAULTS: dict[int, tuple[int, ...]] = {
    _SUBFILE: (0,),
    _WIDTH: (0,),
    _HEIGHT: (0,),
    _BITS: (1,),
    _COMPRESSION: (1,),
    _PHOTOMETRIC: (-1,),
    _ORIENTATION: (1,),
    _BANDS: (1,),
    _PLANAR: (1,),
    _TILE_WIDTH: (1,),
    _TILE_HEIGHT: (1,),
    _EXTRA: (),
    _FORMAT: (1,),
    _DEPTH: (1,),
}
# Of a tag's values: every type of which decoders take a whole number.
_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MAX_VALUES = 1 << 16  # as many bands as a TIFF can have

_PREFIXES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")  # the last two are wrong, and PIL's
_COPIES = 0b101  # of _SUBFILE: a smaller copy of another page, or its mask
_WHITE_IS_ZERO, _GRAY, _RGB, _PALETTE = 0, 1, 2, 3
# Photometric interpretations of one meaning: name, bands, PIL's mode.
_COLOURS = {
    _WHITE_IS_ZERO: ("MINISWHITE", 1, "L"),
    _GRAY: ("MINISBLACK", 1, "L"),
    _RGB: ("RGB", 3, "RGB"),
    _PALETTE: ("palette", 1, "P"),
    5: ("CMYK", 4, "CMYK"),
    6: ("YCbCr", 3, "YCbCr"),
    8: ("CIELAB", 3, "LAB"),
}
_ALPHA = (1, 2, 999)  # of _EXTRA: associated, not associated, and what CorelDRAW writes
_FORMATS = {
    1: "unsigned integers",
    2: "signed integers",
    3: "floats",
    5: "complex integers",
    6: "complex floats",
}
_COMPRESSIONS = {
    1: "no compression",
    2: "CCITT",
    3: "CCITT fax 3",
    4: "CCITT fax 4",
    5: "LZW",
    6: "old JPEG",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    22610: "JPEG XR",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_OF_OPENCV = (1, 5, 7, 8, 32773, 32946)  # it gives a black picture for some of the others


def is_tiff(data: bytes) -> bool:
    """Whether it begins as a TIFF or a BigTIFF."""
    return data[:4] in _PREFIXES


class Tiff:
    """The first directory of a TIFF, and whether there are further pages. Raises ValueError where it is damaged."""

    def __init__(self, data: bytes) -> None:
        pages = directories(data)
        self._tags = next(pages)
        self._other_pages = pages

    def _one(self, tag: int) -> int:
        return self._tags[tag][0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as shown, pixels."""
        height, width = self._one(_HEIGHT), self._one(_WIDTH)
        return (width, height) if self._one(_ORIENTATION) in (5, 6, 7, 8) else (height, width)

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width) of a tile, which decoders allocate whole; (1, 1) where there are strips."""
        return self._one(_TILE_HEIGHT), self._one(_TILE_WIDTH)

    @property
    def bits(self) -> int:
        """Of a sample; 0 where bands differ."""
        return self._tags[_BITS][0] if len(set(self._tags[_BITS])) == 1 else 0

    @property
    def mode(self) -> str:
        """What PIL calls it."""
        mode = _COLOURS[self._one(_PHOTOMETRIC)][2]
        if mode == "L" and self.bits in (1, 12, 16):
            mode = "1" if self.bits == 1 else "I;16"
        return mode + "A" * self._has_alpha

    @property
    def _colour_bands(self) -> int:
        return _COLOURS.get(self._one(_PHOTOMETRIC), ("", 0, ""))[1]

    @property
    def _extra(self) -> tuple[int, ...]:
        """What each band beyond the colours is; 0, unspecified, where the file does not say."""
        extra = self._tags[_EXTRA]
        return extra + (0,) * (self._one(_BANDS) - self._colour_bands - len(extra))

    @property
    def _has_alpha(self) -> bool:
        return bool(self._extra) and self._extra[0] in _ALPHA

    @property
    def _planes(self) -> bool:
        return self._one(_PLANAR) == 2 and self._one(_BANDS) > 1

    def __str__(self) -> str:
        bands, photometric = self._one(_BANDS), self._one(_PHOTOMETRIC)
        bits = f"{self.bits}-bit " if self.bits else "unequal "
        parts = [
            f"TIFF of {bands} band{'s' if bands != 1 else ''} of {bits}"
            + _FORMATS.get(self._tags[_FORMAT][0], "samples of undefined format"),
            f"photometric {_COLOURS.get(photometric, (str(photometric),))[0]}",
            _COMPRESSIONS.get(self._one(_COMPRESSION), f"compression {self._one(_COMPRESSION)}"),
        ]
        return ", ".join(parts + ["planar"] * self._planes)

    @property
    def refusal(self) -> str:
        """Why its pixels are not one picture, "" where they are."""
        if set(self._tags[_FORMAT]) != {1}:
            return f"{self}: only unsigned integers have an agreed range; convert it to 8-bit RGB or gray"
        if not self._colour_bands:
            return f"{self}: the colours of such bands are not read; convert it to 8-bit RGB or gray"
        if self.bits not in (1, 2, 4, 8, 12, 16):
            return f"{self}: samples of that size are not read; convert it to 8-bit RGB or gray"
        bands, colours = self._one(_BANDS), self._colour_bands
        if bands < colours or len(self._tags[_EXTRA]) > bands - colours:
            return f"{self}: colours need other bands; convert it to 8-bit RGB or gray"
        if colours == 1 and bands > 1 and (bands > 2 or not self._has_alpha):
            return (
                f"{self}: which bands are the picture is not said; write one band, or three with photometric RGB, "
                "8 bits each"
            )
        if self._one(_DEPTH) != 1:
            return f"{self}: a volume of {self._one(_DEPTH)} slices; write them as images"
        return ""

    @cached_property
    def left_out(self) -> str:
        """What of the file is no part of the picture and no alpha, "" for nothing."""
        try:
            further = any(page[_SUBFILE][0] & _COPIES == 0 for page in self._other_pages)
        except ValueError:  # there is one, however damaged
            further = True
        parts = ["more than one page: the first is used"] * further
        parts += ["bands beyond the colours that are no alpha: they are not used"] * (0 in self._extra)
        return "; ".join(parts)

    @property
    def for_opencv(self) -> bool:
        """Whether OpenCV reads such pixels right, where it reads them.

        It multiplies colours by their alpha, makes bytes of other integers by dropping bits, misplaces the last tiles
        of gray rows and of what is turned, mixes up the planes of gray and alpha, and reads few palettes.
        """
        gray = self._colour_bands == 1
        alpha_or_other = (2,) if gray else (0,)
        return (
            self.bits in (8, 16)
            and self._one(_PHOTOMETRIC) in (_WHITE_IS_ZERO, _GRAY, _RGB)
            and self._one(_COMPRESSION) in _OF_OPENCV
            and (not self._extra or self._tags[_EXTRA] == alpha_or_other)
            and self.tile == (1, 1)
            and not (gray and self._planes)
        )

    @property
    def for_pil(self) -> bool:
        """Whether PIL reads such pixels right, where it reads them.

        It takes what stands in planes without compression for bytes whose 0 is black, and does not turn round 16-bit
        samples whose 0 is white.
        """
        white = self._one(_PHOTOMETRIC) == _WHITE_IS_ZERO
        if self._one(_PLANAR) == 2 and self._one(_COMPRESSION) == 1:
            return self.bits == 8 and not white
        return self.bits <= 8 or not white


def directories(data: bytes) -> Iterator[dict[int, tuple[int, ...]]]:
    """Tags of each page. Raises ValueError where a directory is damaged.

    No more is read than the file holds, so that parts that overlap cannot keep the reader busy.
    """
    left = len(data)
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    offset_of, count_of, entry = ("Q", "Q", "HHQ") if big else ("I", "H", "HHI")
    entry_size, inline = (20, 8) if big else (12, 4)

    def number(form: str, position: int) -> int:
        value: int = struct.unpack_from(order + form, data, position)[0]
        return value

    try:
        offset, seen = number(offset_of, inline), set[int]()
        while offset and offset not in seen:
            seen.add(offset)
            count = number(count_of, offset)
            position = offset + struct.calcsize(order + count_of)
            end = position + count * entry_size
            offset = number(offset_of, end)  # of the next page; now all entries are known to be there
            left -= end - position
            tags = dict[int, tuple[int, ...]]()
            for at in range(position, end if left >= 0 else position, entry_size):
                tag, kind, length = struct.unpack_from(order + entry, data, at)
                if tag not in _DEFAULTS or tag in tags:
                    continue
                if kind not in _TYPES or not 0 < length <= _MAX_VALUES:
                    raise ValueError(f"damaged TIFF: its tag {tag} holds no whole numbers")
                form = f"{order}{length}{_TYPES[kind]}"
                values = at + entry_size - inline
                if (size := struct.calcsize(form)) > inline:
                    values, left = number(offset_of, values), left - size
                tags[tag] = struct.unpack_from(form, data, values)
            if left < 0:
                raise ValueError("damaged TIFF: its directories overlap")
            yield _DEFAULTS | tags
        if not seen:
            raise ValueError("damaged TIFF: it has no page")
    except (struct.error, OverflowError) as error:
        raise ValueError("truncated or damaged TIFF: its directory lies outside of it") from error
