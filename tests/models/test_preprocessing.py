import torch

from ssl_ray.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, DataPreprocessor


def test_uint8_is_normalised_as_torchvision_does_and_keeps_its_memory_format() -> None:
    view = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    (ours,) = DataPreprocessor()([view])
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    # A float32 rounding or two apart: values reach 2.6, whose spacing is 2.4e-7.
    torch.testing.assert_close(ours, (view / 255 - mean) / std, rtol=0, atol=1e-6)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_float_views_pass_untouched() -> None:
    view = torch.randn(2, 3, 4, 4)
    assert DataPreprocessor()([view])[0] is view
