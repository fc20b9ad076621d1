import math

import cv2
import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from ssl_ray.data.augment import geometry
from ssl_ray.data.augment.geometry import (
    Box,
    CenterCrop,
    RandomSquare,
    horizontal_flip,
    resized_crop,
    rotate,
)
from ssl_ray.data.random import Draws
from ssl_ray.errors import UserError
from tests.data.photos import patch, photo

MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
}
FLAGS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}


def torchvision(image: np.ndarray, box: Box, size: int, mode: geometry.Interpolation) -> np.ndarray:
    return np.asarray(F.resized_crop(Image.fromarray(image), *box, [size, size], MODES[mode])).astype(int)


@pytest.mark.parametrize("name", ["flower.jpg", "china.jpg"])
@pytest.mark.parametrize("box", [Box(10, 20, 224, 224), Box(0, 0, 100, 120), Box(277, 510, 150, 130)])
def test_enlarging_equals_torchvision(name: str, box: Box) -> None:
    image = photo(name)
    bilinear = np.abs(resized_crop(image, box, 224) - torchvision(image, box, 224, "bilinear"))
    assert bilinear.max() <= 1  # fixed-point weights
    bicubic = np.abs(resized_crop(image, box, 224, "bicubic") - torchvision(image, box, 224, "bicubic"))
    assert bicubic.mean() < 1.5  # OpenCV's cubic has a = -0.75, PIL's -0.5


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", ["flower.jpg", "china.jpg"])
def test_shrinking_to_224_px_is_close_to_pil(name: str, mode: geometry.Interpolation) -> None:
    """Crops of up to 427 of 427 pixels, mean absolute difference in levels of 255.

    Filters as wide as PIL's would cost several times as much as all else; ours are near enough on photographs.
    """
    image = photo(name)
    ours, plain = [], []
    for height, width in ((240, 250), (270, 300), (300, 280), (340, 340), (380, 300), (427, 420)):
        box = Box(0, 90, height, width)
        pil = torchvision(image, box, 224, mode)
        ours.append(np.abs(resized_crop(image, box, 224, mode) - pil).mean())
        unfiltered = cv2.resize(image[:height, 90 : 90 + width], (224, 224), interpolation=FLAGS[mode])
        plain.append(np.abs(unfiltered - pil).mean())
    assert max(ours) < {"flower.jpg": 0.8, "china.jpg": 1.8}[name]
    assert np.mean(ours) < 0.5 * np.mean(plain)


def test_a_side_that_does_not_shrink_is_not_smoothed() -> None:
    stripes = np.zeros((224, 400, 3), np.uint8)
    stripes[::2] = 255  # along the side that shrinks: every row keeps its value
    assert np.array_equal(resized_crop(stripes, Box(0, 0, 224, 400), 224), stripes[:, :224])
    assert np.array_equal(
        resized_crop(stripes.swapaxes(0, 1), Box(0, 0, 400, 224), 224), stripes[:, :224].swapaxes(0, 1)
    )
    image = photo()[:224, :224]
    assert np.array_equal(resized_crop(image, Box(0, 0, 224, 224), 224), image)


def test_the_finest_pattern_fades_as_it_should() -> None:
    """Shrunk by 1.9, black and white rows of one pixel are close to an even gray; unfiltered they beat."""
    rows = np.zeros((426, 426, 3), np.uint8)
    rows[::2] = 255
    view = resized_crop(rows, Box(0, 0, 426, 426), 224).astype(int)
    assert view.mean() == pytest.approx(127.5, abs=1.5)
    assert view.std() < 12
    assert cv2.resize(rows, (224, 224), interpolation=cv2.INTER_LINEAR).std() > 50


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("side", [240, 320, 400])
def test_halving_removes_most_of_the_aliasing(mode: geometry.Interpolation, side: int) -> None:
    # PIL widens its filter when it shrinks; ours is an approximation of that, plain OpenCV is not.
    image, box = photo("china.jpg"), Box(20, 30, side, side)
    pil = torchvision(image, box, 96, mode)
    plain = cv2.resize(image[20 : 20 + side, 30 : 30 + side], (96, 96), interpolation=FLAGS[mode])
    ours_error = np.abs(resized_crop(image, box, 96, mode) - pil).mean()
    assert ours_error < 0.6 * np.abs(plain - pil).mean()
    assert ours_error < 9


def test_halving_several_times_is_the_mean_of_blocks() -> None:
    image = photo()[:416, :416]
    blocks = image.reshape(52, 8, 52, 8, 3).mean((1, 3))
    # Three roundings instead of one.
    assert np.abs(resized_crop(image, Box(0, 0, 416, 416), 52) - blocks).max() <= 2


def test_boxes_are_drawn_as_torchvision_draws_them() -> None:
    cut = geometry.RandomResizedCrop((0.2, 1.0))
    ours = np.array([cut.draw(Draws(0, 0, i), 375, 500) for i in range(4000)], float)
    blank = Image.new("RGB", (500, 375))
    theirs = np.array(
        [RandomResizedCrop.get_params(blank, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], float
    )
    for column in range(4):  # top, left, height, width: two-sample Kolmogorov-Smirnov, 0.01 %
        grid = np.sort(np.concatenate([ours[:, column], theirs[:, column]]))
        cdf = [np.searchsorted(np.sort(x[:, column]), grid, side="right") / 4000 for x in (ours, theirs)]
        assert np.abs(cdf[0] - cdf[1]).max() < 2.23 * math.sqrt(2 / 4000)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (28, 28), (1, 1), (1000, 10), (10, 1000), (1, 40)])
def test_boxes_lie_inside_the_image(height: int, width: int) -> None:
    cut = geometry.RandomResizedCrop((0.08, 1.0))
    for i in range(300):
        box = cut.draw(Draws(1, 0, i), height, width)
        assert box.height > 0
        assert box.width > 0
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width


def test_after_ten_tries_the_central_box() -> None:
    cut = geometry.RandomResizedCrop((0.9, 1.0))  # nothing with ratio <= 4/3 covers 90 % of 10 x 1000
    assert cut.draw(Draws(0, 0, 0), 10, 1000) == Box(0, 493, 10, 13)
    assert cut.draw(Draws(0, 0, 0), 1000, 10) == Box(493, 0, 13, 10)


def test_center_crop() -> None:
    assert CenterCrop(0.875).draw(Draws(0, 0, 0), 256, 300) == Box(16, 38, 224, 224)
    assert CenterCrop(1.0).draw(Draws(0, 0, 0), 28, 28) == Box(0, 0, 28, 28)


def test_a_random_square_is_anywhere_in_the_image() -> None:
    cut = RandomSquare(255 / 292)
    boxes = np.array([cut.draw(Draws(0, 0, i), 292, 400) for i in range(3000)])
    assert (boxes[:, 2:] == 255).all()
    assert boxes[:, :2].min(0).tolist() == [0, 0]
    assert boxes[:, :2].max(0).tolist() == [292 - 255, 400 - 255]
    assert boxes[:, :2].mean(0) == pytest.approx([37 / 2, 145 / 2], rel=0.05)
    assert RandomSquare(1.0).draw(Draws(0, 0, 0), 28, 28) == Box(0, 0, 28, 28)


def test_reduced_box_covers_the_same_part() -> None:
    assert Box(40, 80, 160, 320).reduced(8, 100, 100) == Box(5, 10, 20, 40)
    for i in range(200):
        box = geometry.RandomResizedCrop().draw(Draws(0, 0, i), 375, 501)
        small = box.reduced(4, 94, 126)
        assert small.top + small.height <= 94
        assert small.left + small.width <= 126
        for full_edge, edge in zip(box, small, strict=True):
            assert abs(full_edge / 4 - edge) <= 1


def test_flip() -> None:
    image = patch(size=31)
    assert np.array_equal(horizontal_flip(image), image[:, ::-1])
    batch = np.stack([image] * 3)
    horizontal_flip(batch[1], batch[1])
    assert np.array_equal(batch[1], image[:, ::-1])
    assert np.array_equal(batch[0], image)


@pytest.mark.parametrize("degrees", [2.0, -1.5, 30.0])
def test_rotating_equals_torchvision(degrees: float) -> None:
    image = patch(size=97)
    theirs = np.asarray(F.rotate(Image.fromarray(image), degrees, InterpolationMode.BILINEAR)).astype(int)
    inside = slice(24, 73)  # PIL ends the picture half a pixel elsewhere
    assert np.abs(rotate(image, degrees)[inside, inside] - theirs[inside, inside]).mean() < 1
    turned = image.copy()
    rotate(turned, degrees, turned)
    assert np.array_equal(turned, rotate(image, degrees))
    assert not rotate(image, degrees)[0, 0].any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: geometry.RandomResizedCrop((0.0, 1.0)),
        lambda: geometry.RandomResizedCrop((0.2, 1.1)),
        lambda: geometry.RandomResizedCrop((0.6, 0.5)),
        lambda: geometry.RandomResizedCrop(ratio=(0.0, 1.0)),
        lambda: geometry.RandomResizedCrop(ratio=(2.0, 1.0)),
        lambda: CenterCrop(0.0),
        lambda: CenterCrop(1.5),
        lambda: RandomSquare(float("nan")),
    ],
)
def test_ranges_are_checked(make: type) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
