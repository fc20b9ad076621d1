"""RandAugment's operations against Pillow's, its draws, and random erasing."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ssl_ray.data.augment.rand_augment import OPERATIONS, RandAugment, RandomErasing
from ssl_ray.data.random import Draws
from ssl_ray.errors import UserError


def picture(size: int = 24) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    smooth = np.stack([40 + 6 * rows, 30 + 5 * columns, 200 - 3 * rows - 2 * columns], axis=2)
    return (smooth + np.random.default_rng(0).integers(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)


def affine(*coefficients: float) -> np.ndarray:
    """Pillow's, which counts from pixel corners: half a pixel is moved there and back."""
    a, b, c, d, e, f = coefficients
    half = (a, b, c + 0.5 - 0.5 * (a + b), d, e, f + 0.5 - 0.5 * (d + e))
    image = Image.fromarray(picture())
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, half, Image.Resampling.BILINEAR))


PILLOW = {
    "autocontrast": (0.9, lambda i: ImageOps.autocontrast(i), 1),
    "invert": (0.9, lambda i: ImageOps.invert(i), 0),
    "posterize": (0.75, lambda i: ImageOps.posterize(i, 5), 0),
    "solarize": (0.5, lambda i: ImageOps.solarize(i, 128), 0),
    "color": (-0.5, lambda i: ImageEnhance.Color(i).enhance(0.55), 2),
    "contrast": (-0.5, lambda i: ImageEnhance.Contrast(i).enhance(0.55), 2),
    "brightness": (0.5, lambda i: ImageEnhance.Brightness(i).enhance(1.45), 2),
    "sharpness": (0.5, lambda i: ImageEnhance.Sharpness(i).enhance(1.45), 2),
}


@pytest.mark.parametrize("name", PILLOW)
def test_colours_are_pillow_s(name: str) -> None:
    strength, theirs, off = PILLOW[name]
    expected = np.asarray(theirs(Image.fromarray(picture()))).astype(int)
    found = OPERATIONS[name](picture(), strength).astype(int)
    inside = (slice(1, -1), slice(1, -1))  # Pillow leaves the edge of a filtered image as it was
    assert np.abs(found - expected)[inside].max() <= off
    assert np.abs(found - picture().astype(int)).max() > 3


@pytest.mark.parametrize(
    ("name", "strength", "coefficients"),
    [
        ("shear_x", 0.9, (1, 0.27, 0, 0, 1, 0)),
        ("shear_y", -0.5, (1, 0, 0, -0.15, 1, 0)),
        ("translate_x", 0.5, (1, 0, 0.225 * 24, 0, 1, 0)),
        ("translate_y", -0.5, (1, 0, 0, 0, 1, -0.225 * 24)),
    ],
)
def test_places_are_pillow_s(name: str, strength: float, coefficients: tuple[float, ...]) -> None:
    expected, found = affine(*coefficients), OPERATIONS[name](picture(), strength)
    both = (expected > 0).all(2)  # black outside there, grey here
    both[[0, -1]] = both[:, [0, -1]] = False
    both &= np.roll(both, 1, 0) & np.roll(both, -1, 0) & np.roll(both, 1, 1) & np.roll(both, -1, 1)
    assert both.mean() > 0.4
    assert np.abs(found.astype(int) - expected)[both].max() <= 6


def test_equalized_values_are_spread_evenly() -> None:
    found = OPERATIONS["equalize"](picture(), 1.0)
    for channel in range(3):
        assert np.abs(np.sort(found[:, :, channel].ravel()) / 255 - np.linspace(0, 1, 24 * 24)).max() < 0.05


def test_a_turn_there_and_back() -> None:
    big = np.asarray(Image.fromarray(picture()).resize((96, 96), Image.Resampling.BICUBIC))
    back = OPERATIONS["rotate"](OPERATIONS["rotate"](big, 0.5), -0.5)
    assert np.abs(back.astype(int) - big)[24:-24, 24:-24].mean() < 3
    assert np.abs(OPERATIONS["rotate"](big, 0.5).astype(int) - big)[24:-24, 24:-24].mean() > 5


def test_solarize_add_brightens_the_dark_half_alone() -> None:
    found = OPERATIONS["solarize_add"](picture(), 1.0)
    dark = picture() < 128
    np.testing.assert_array_equal(found[~dark], picture()[~dark])
    np.testing.assert_array_equal(found[dark], picture()[dark] + 110)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.37, 1.0])
def test_every_operation_takes_every_view(name: str, strength: float) -> None:
    for view in (picture(), np.full((5, 5, 3), 77, np.uint8)):
        kept = view.copy()
        found = OPERATIONS[name](view, strength)
        assert (found.shape, found.dtype) == (view.shape, np.uint8)
        np.testing.assert_array_equal(view, kept)


def test_draws() -> None:
    drawn = [RandAugment().draw(Draws(0, 0, i)) or [] for i in range(2000)]
    applied = [pair for pairs in drawn for pair in pairs]
    assert np.isclose(len(applied) / 4000, 0.5, atol=0.03)
    names = [name for name, _ in applied]
    assert set(names) == set(OPERATIONS)
    assert min(names.count(n) for n in OPERATIONS) > 80
    strengths = np.array([s for _, s in applied])
    assert np.isclose((strengths > 0).mean(), 0.5, atol=0.05)
    # Normal about 0.9 with deviation 0.05, cut off at 1.
    assert np.isclose(np.median(np.abs(strengths)), 0.9, atol=0.01)
    assert np.isclose(np.abs(strengths[np.abs(strengths) < 0.9] / 1).std(), 0.05 * 0.603, atol=0.004)
    assert np.abs(strengths).max() <= 1
    with pytest.raises(UserError, match="magnitude 11"):
        RandAugment(magnitude=11)


def test_erasing() -> None:
    erasing = RandomErasing(p=0.25)
    drawn = [erasing.draw(Draws(0, 0, i)) for i in range(2000)]
    there = [d for d in drawn if d]
    assert np.isclose(len(there) / 2000, 0.25, atol=0.03)
    areas = np.array([d.height * d.width for d in there])
    assert areas.max() < 1 / 3 + 1e-9
    assert np.isclose(np.median(areas), (0.02 + 1 / 3) / 2, atol=0.03)
    assert all(0 <= d.top <= d.top + d.height <= 1 and 0 <= d.left <= d.left + d.width <= 1 for d in there)
    view = picture()
    one = there[0]
    erasing.apply(view, one)
    rows, columns = np.nonzero((view != picture()).any(2))
    assert abs(len(np.unique(rows)) - one.height * 24) <= 1
    assert abs(len(np.unique(columns)) - one.width * 24) <= 1
    again = picture()
    erasing.apply(again, one)
    np.testing.assert_array_equal(view, again)
    with pytest.raises(UserError, match="RandomErasing: p 2"):
        RandomErasing(p=2)
