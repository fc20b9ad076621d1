"""Against torchvision with the same parameters, on photographs."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from ssl_ray.data.augment import color
from tests.data.photos import patch

PHOTOS = ["flower.jpg", "china.jpg"]
FACTORS = [0.0, 0.2, 0.6, 1.0, 1.3, 1.8]


def difference(a: np.ndarray, b: object) -> np.ndarray:
    result: np.ndarray = np.abs(a.astype(int) - np.asarray(b).astype(int))
    return result


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("operation", ["brightness", "contrast", "saturation"])
def test_blends_equal_torchvision(name: str, factor: float, operation: str) -> None:
    image = patch(name)
    ours = getattr(color, f"adjust_{operation}")(image, factor)
    theirs = getattr(F, f"adjust_{operation}")(Image.fromarray(image), factor)
    # PIL cuts off fractions and rounds luma and mean first; ours rounds once: one level apart at most.
    assert difference(ours, theirs).max() <= 1


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(
    "shift", [-0.5, -0.4, -0.17, -0.1, -0.01, 0.0, 0.02, 0.1, 1 / 6, 0.2, 1 / 3, 0.4, 0.5]
)
def test_hue_equals_torchvision(name: str, shift: float) -> None:
    image = patch(name)
    ours = color.adjust_hue(image, shift)
    tensor = F.adjust_hue(torch.from_numpy(image).permute(2, 0, 1), shift).permute(1, 2, 0)
    # On tensors torchvision computes HSV in floating point: one rounding apart.
    assert difference(ours, tensor.numpy()).max() <= 1
    # On PIL images it goes through 8-bit HSV, whose hue has 256 steps (6 levels of a channel each) and whose
    # saturation and value are rounded too: PIL is that far from its own floating-point result.
    pil = difference(ours, F.adjust_hue(Image.fromarray(image), shift))
    assert pil.max() <= 14
    assert pil.mean() < 1.5


def test_hue_of_every_kind_of_colour() -> None:
    levels = np.array([0, 1, 50, 127, 128, 200, 254, 255], np.uint8)
    image = np.array(list(itertools.product(levels, repeat=3)), np.uint8).reshape(16, 32, 3)
    for shift in np.linspace(-0.5, 0.5, 31):
        tensor = F.adjust_hue(torch.from_numpy(image).permute(2, 0, 1), float(shift)).permute(1, 2, 0)
        assert difference(color.adjust_hue(image, float(shift)), tensor.numpy()).max() <= 1


def test_hue_by_thirds_exchanges_channels_and_grey_has_none() -> None:
    image = patch()
    assert np.array_equal(color.adjust_hue(image, 1 / 3), image[..., [2, 0, 1]])
    assert np.array_equal(color.adjust_hue(image, -1 / 3), image[..., [1, 2, 0]])
    gray = color.to_grayscale(image)
    assert np.array_equal(color.adjust_hue(gray, 0.37), gray)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::3])
@pytest.mark.parametrize("factors", [(0.7, 0.8, 0.9, 0.05), (1.4, 0.7, 1.3, -0.1), (0.3, 1.7, 0.5, 0.2)])
def test_jitter_equals_torchvision_step_by_step(
    order: tuple[int, ...], factors: tuple[float, float, float, float]
) -> None:
    image = patch()
    names = ["brightness", "contrast", "saturation", "hue"]
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    for operation in order:
        tensor = getattr(F, f"adjust_{names[operation]}")(tensor, factors[operation])
    exact = (tensor * 255).round().byte().permute(1, 2, 0).numpy()
    ours = difference(color.color_jitter(image, *factors, order), exact)
    # Roundings between the passes, enlarged by factors up to 1.7 * 1.4 that follow them.
    assert ours.max() <= 5
    assert ours.mean() < 0.6


def test_jitter_is_the_sequence_of_its_operations() -> None:
    image = patch("china.jpg")
    expected = color.adjust_contrast(color.adjust_brightness(image, 1.6), 0.5)
    # Brightness above 1 clips, and what is clipped stays so: fusing both would be off by up to 50 levels.
    assert difference(color.color_jitter(image, 1.6, 0.5, 1.0, 0.0), expected).max() <= 1
    assert np.array_equal(color.color_jitter(image, 1.0, 1.0, 1.0, 0.0), image)


@pytest.mark.parametrize("name", PHOTOS)
def test_grayscale_and_solarize_equal_torchvision(name: str) -> None:
    image = patch(name)
    # Both are luma in fixed point, PIL's with 16 bits, OpenCV's with 15: ties round differently.
    assert difference(color.to_grayscale(image), F.rgb_to_grayscale(Image.fromarray(image), 3)).max() <= 1
    assert np.array_equal(color.solarize(image, 128), F.solarize(Image.fromarray(image), 128))
    assert np.array_equal(color.solarize(image, 40), F.solarize(Image.fromarray(image), 40))


@pytest.mark.parametrize(
    "operation",
    [
        lambda image, out: color.adjust_brightness(image, 1.3, out),
        lambda image, out: color.adjust_contrast(image, 0.4, out),
        lambda image, out: color.adjust_saturation(image, 1.3, out),
        lambda image, out: color.adjust_hue(image, 0.13, out),
        lambda image, out: color.color_jitter(image, 1.3, 0.7, 1.2, 0.1, (2, 0, 3, 1), out),
        lambda image, out: color.color_jitter(image, 1.0, 1.0, 1.0, 0.0, (0, 1, 2, 3), out),
        color.to_grayscale,
        lambda image, out: color.solarize(image, 128, out),
    ],
)
def test_out_may_be_a_row_or_the_image_itself(operation) -> None:  # type: ignore[no-untyped-def]
    image = patch()
    before = image.copy()
    expected = operation(image, None)
    assert np.array_equal(image, before)
    assert not np.shares_memory(expected, image)
    batch = np.zeros((3, *image.shape), np.uint8)
    operation(image, batch[1])
    assert np.array_equal(batch[1], expected)
    batch[1] = image
    operation(batch[1], batch[1])
    assert np.array_equal(batch[1], expected)
    assert not batch[0].any()
    assert not batch[2].any()
