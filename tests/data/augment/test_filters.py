import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import functional as F

from ssl_ray.data.augment.filters import gaussian_blur
from tests.data.photos import patch


@pytest.mark.parametrize("name", ["flower.jpg", "china.jpg"])
@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 0.8, 1.0, 1.3, 1.7, 2.0])
def test_blur_is_a_gaussian(name: str, sigma: float) -> None:
    image = patch(name)
    side = 2 * math.ceil(5 * sigma) + 1
    tensor = torch.from_numpy(image).permute(2, 0, 1).double()
    exact = F.gaussian_blur(tensor, [side, side], [sigma, sigma]).permute(1, 2, 0).numpy()
    ours = gaussian_blur(image, sigma).astype(int)
    error = np.abs(ours - exact)
    # The cut at 2.5 sigma leaves out 1.2 % of the weight; the kernel has 8 bits, the result is rounded.
    assert error.max() <= 3
    assert error.mean() < 0.5
    # PIL's blur is three box filters; it is further from the Gaussian than ours.
    pil = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))).astype(int)
    assert error.mean() <= np.abs(pil - exact).mean() + 0.3
    assert np.abs(ours - pil).mean() < 2


def test_out_may_be_the_image_itself() -> None:
    image = patch()
    expected = gaussian_blur(image, 1.9)
    batch = np.zeros((3, *image.shape), np.uint8)
    batch[1] = image
    gaussian_blur(batch[1], 1.9, batch[1])
    assert np.array_equal(batch[1], expected)
    assert not batch[0].any()
    assert not batch[2].any()


def test_small_images() -> None:
    flat = np.full((3, 2, 3), 77, np.uint8)
    assert np.array_equal(gaussian_blur(flat, 2.0), flat)
