"""What is odd is decoded as what it shows; what is broken or too large is refused before a decoder is asked."""

import os
from pathlib import Path

import numpy as np
import pytest

from ssl_ray.data.decode import BrokenImage, decode, read_header
from ssl_ray.data.source import open_dataset
from ssl_ray.data.verify import verify
from tests.data.odd_images import (
    BROKEN,
    FRAMES,
    HEIGHT,
    LIMIT,
    ODD,
    PICTURE,
    PIXELS,
    SIDE,
    TOO_LARGE,
    WIDTH,
    animated,
    changed,
    encode,
    png,
)


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_the_limit_is_asked_before_the_decoder_is(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = TOO_LARGE[kind]
    for read in (read_header, decode):
        with pytest.raises(BrokenImage, match=f"{SIDE} x {SIDE} pixels, allowed are 1 to {LIMIT}"):
            read(data, max_pixels=LIMIT)
    assert capfd.readouterr() == ("", ""), "what a library says of it is not for the terminal"
    assert read_header(data, max_pixels=SIDE * SIDE)[:2] in ((SIDE, SIDE), (HEIGHT, WIDTH))


def test_the_limit_is_134_megapixels() -> None:
    """Of a header, which takes no memory: a file that says it has 2.5 gigapixels made a decoder take 7.5 GB."""
    assert read_header(png(width=1 << 14, height=1 << 13))[:2] == (1 << 13, 1 << 14)
    with pytest.raises(BrokenImage, match="16384 x 8193 pixels, allowed are 1 to 134217728"):
        read_header(png(width=1 << 14, height=(1 << 13) + 1))


@pytest.mark.parametrize("kind", BROKEN)
def test_the_broken_are_refused_with_a_reason(kind: str) -> None:
    with pytest.raises(BrokenImage) as caught:
        decode(BROKEN[kind])
    assert caught.value.reason


@pytest.mark.parametrize("name", ODD)
def test_the_odd_are_shown_as_they_are(name: str) -> None:
    image = decode(ODD[name])
    if name.startswith("rotated"):
        turn = int(name[8]) if name[8].isdigit() else {"png": 6, "webp": 8}[name.rpartition(".")[2]]
        assert image.shape == ((HEIGHT, WIDTH, 3) if turn < 5 else (WIDTH, HEIGHT, 3))
        return
    grey = np.repeat(np.asarray(PICTURE.convert("L"))[..., None], 3, 2)
    wanted = grey if name.startswith("gray") else PIXELS
    lossy = 12 if name.startswith(("palette", "cmyk", "animated gif")) else 0
    assert image.shape == wanted.shape
    assert np.abs(image.astype(int) - wanted).mean() <= lossy


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_the_first_frame_counts_however_large_the_second_says_it_is(kind: str) -> None:
    data = animated(kind, **({"lossless": True} if kind == "WEBP" else {}))
    still = decode(encode(FRAMES[0], kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.array_equal(decode(data), still)
    if kind == "PNG":
        second = data.index(b"fcTL", data.index(b"fcTL") + 4)
        data = changed(data, second + 8, ">II", 3 * WIDTH, 3 * HEIGHT)
    elif kind == "GIF":
        size = WIDTH.to_bytes(2, "little") + HEIGHT.to_bytes(2, "little")
        frames = [i for i, byte in enumerate(data) if byte == 0x2C and data[i + 5 : i + 9] == size]
        data = changed(data, frames[1] + 5, "<HH", 3 * WIDTH, 3 * HEIGHT)
    else:
        return  # its container has one size for all
    assert np.array_equal(decode(data), still)


def _two_classes(root: Path) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            (root / name / f"{i}.png").write_bytes(encode(PICTURE, "PNG"))
    return root


def test_links_that_lead_round_add_nothing_and_odd_files_are_named(tmp_path: Path) -> None:
    root = _two_classes(tmp_path / "pets")
    (root / "cat" / "up").symlink_to("..", target_is_directory=True)
    (root / "dog" / "cats").symlink_to("../cat", target_is_directory=True)  # these are images of dogs, too
    (root / "cat" / "me.png").symlink_to("me.png")
    (root / "cat" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(root / "dog" / "pipe.png")
    (root / "cat" / os.fsdecode(b"b\xff.png")).write_bytes(encode(PICTURE, "PNG"))
    (root / "dog" / "notes.txt").write_text("")
    (root / "empty").mkdir()
    dataset = open_dataset(str(root), holdout=0)
    assert dataset.train.info.num_samples == 8 + 4
    assert dataset.train.info.class_names == ("cat", "dog")
    assert dataset.note.startswith(
        "ignored 1 files that are not images by suffix (dog/notes.txt) and 7 broken links, special files or names that "
        "are not UTF-8 (cat/b\\xff.png, cat/gone.jpg, cat/me.png, ...)"
    )


def test_links_among_two_folders_end_as_well(tmp_path: Path) -> None:
    root = _two_classes(tmp_path / "pets")
    (root / "cat" / "dogs").symlink_to("../dog", target_is_directory=True)
    (root / "dog" / "cats").symlink_to("../cat", target_is_directory=True)
    assert open_dataset(str(root), holdout=0).train.info.num_samples == 8 + 8


def test_the_reason_is_that_of_the_file_system(tmp_path: Path) -> None:
    root = _two_classes(tmp_path / "pets")
    source = open_dataset(str(root), holdout=0).train
    gone, round_ = (root / "cat" / f"{i}.png" for i in range(2))
    gone.unlink()
    round_.unlink()
    round_.symlink_to(round_.name)
    expected = {
        str(gone): "cannot be read: No such file or directory",
        str(round_): "cannot be read: Too many levels of symbolic links",
    }
    if os.geteuid():  # root may read everything
        secret = root / "dog" / "0.png"
        secret.chmod(0)
        expected[str(secret)] = "cannot be read: Permission denied"
    assert {path: reason for _, path, reason in verify(source).broken} == expected


@pytest.mark.filterwarnings("ignore")  # as it is in use
def test_a_damaged_tag_hides_no_size() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x05abcd"  # a text where a number belongs
    assert read_header(encode(PICTURE, "JPEG", exif=exif))[:2] == (HEIGHT, WIDTH)
