"""Which files of a folder are images by suffix: those, and no others, that are decoded."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ssl_ray.data.decode import decode, suffixes
from ssl_ray.data.source import open_dataset
from ssl_ray.errors import UserError

# A smooth picture, which lossy formats keep.
PICTURE = np.stack([np.add.outer(np.arange(40), np.arange(60)) * k for k in (1, 1.5, 2)], -1).astype(np.uint8)
EVERYWHERE = {
    ".bmp",
    ".gif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".mpo",
    ".pgm",
    ".png",
    ".ppm",
    ".tga",
    ".tif",
}


def write(folder: Path, suffix: str) -> int:
    """Writes the picture with Pillow and with OpenCV, as far as these write such a file. Returns how many there are."""
    folder.mkdir(exist_ok=True)
    image = Image.fromarray(PICTURE)
    (image.convert("1") if suffix == ".pbm" else image).save(folder / f"pillow{suffix.upper()}")
    try:
        encoded = cv2.imencode(suffix, PICTURE[..., ::-1])[1].tobytes()
    except (cv2.error, AttributeError):  # OpenCV does not write it, or not in colour
        return 1
    (folder / f"opencv{suffix}").write_bytes(encoded)
    return 2


@pytest.mark.parametrize("suffix", suffixes())
def test_a_file_of_each_suffix_is_read_as_what_it_shows(tmp_path: Path, suffix: str) -> None:
    count = write(tmp_path / "images", suffix)
    source = open_dataset(str(tmp_path)).train
    assert source.info.num_samples == count
    assert source.info.image_size == PICTURE.shape[:2]
    wanted = PICTURE
    if suffix == ".pbm":
        wanted = np.asarray(Image.fromarray(PICTURE).convert("1").convert("RGB"))
    for data in source.read(np.arange(count)):
        # OpenCV's GIF has a palette of few colours.
        assert np.abs(decode(data).astype(int) - wanted).mean() < (20 if suffix == ".gif" else 2)


def test_the_suffixes_that_need_no_optional_codec_are_there() -> None:
    assert set(suffixes()) >= EVERYWHERE


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".avif", "avif"), (".webp", "webp"), (".jp2", "jpg_2000"), (".j2k", "jpg_2000")]
)
def test_a_suffix_goes_with_the_codec_of_this_machine(suffix: str, codec: str) -> None:
    from PIL import features

    assert (suffix in suffixes()) == features.check(codec)


def test_pictures_that_are_not_decoded_are_named_as_such(tmp_path: Path) -> None:
    write(tmp_path / "cat", ".png")
    write(tmp_path / "dog", ".gif")
    for name in ("cat/a.HEIC", "cat/b.exr", "dog/c.svg", "dog/list.txt"):
        (tmp_path / name).write_bytes(b"")
    note = open_dataset(str(tmp_path), holdout=0).note
    assert note == (
        "ignored 3 images to convert to PNG or JPEG, as their format is not read (cat/a.HEIC, cat/b.exr, dog/c.svg) "
        "and 1 files that are not images by suffix (dog/list.txt)"
    )
    for file in (*tmp_path.rglob("pillow.*"), *tmp_path.rglob("opencv.*")):
        file.unlink()
    with pytest.raises(
        UserError, match=r"no image in .*, only 3 images to convert to PNG or JPEG.*allowed suffixes: "
    ):
        open_dataset(str(tmp_path))
