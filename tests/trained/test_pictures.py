"""Pictures in a page are the images that went in."""

import base64
import io

import cv2
import numpy as np
from PIL import Image

from ssl_ray.trained.report.pictures import from_file, picture, sheet


def decoded(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def smooth(side: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def test_small_pictures_keep_every_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 20, 3), dtype=np.uint8)
    made = picture(image, "a caption")
    assert np.array_equal(decoded(made.uri), image)
    assert (made.width, made.height, made.pixelated, made.caption) == (20, 28, True, "a caption")


def test_large_pictures_shrink_and_keep_their_shape() -> None:
    made = picture(smooth(400)[:200], largest=100)
    assert (made.width, made.height, made.pixelated) == (100, 50, False)
    expected = cv2.resize(smooth(400)[:200], (100, 50), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(decoded(made.uri) - expected).mean() < 6


def test_each_picture_has_its_place_in_the_sheet() -> None:
    images = [np.full((16, 16, 3), 20 * i, np.uint8) for i in range(7)]
    made = sheet(images, 8)
    whole = decoded(made.uri).astype(int)
    assert whole.shape == (made.height, made.width, 3) == (24, 24, 3)
    for i in range(7):
        top, left = i // made.columns * 8, i % made.columns * 8
        assert abs(whole[top + 2 : top + 6, left + 2 : left + 6].mean() - 20 * i) < 4


def test_a_file_that_is_no_picture(tmp_path) -> None:
    (tmp_path / "x.png").write_text("no")
    assert from_file(tmp_path / "x.png") is None
    cv2.imwrite(str(tmp_path / "y.png"), smooth(30)[..., ::-1])
    made = from_file(tmp_path / "y.png")
    assert made is not None
    assert np.array_equal(decoded(made.uri), smooth(30)), "colours in their order"
