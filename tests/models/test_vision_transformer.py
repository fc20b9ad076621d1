"""The plain Vision Transformer; that its features are timm's is tested in tests/interop."""

import pytest
import torch

from ssl_ray.errors import UserError
from ssl_ray.models import VisionTransformer
from ssl_ray.models.layers import layers

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize("registers", [0, 3])
def test_registers_are_read_by_nobody(registers) -> None:
    model = VisionTransformer(**SIZES, num_registers=registers).eval()
    images = torch.randn(2, 3, 16, 16)
    patches, class_token = model(images)
    assert (patches.shape, class_token.shape) == ((2, 24, 4, 4), (2, 24))
    tokens = model.tokens(images)
    assert tokens.shape == (2, 17, 24)
    torch.testing.assert_close(patches[:, :, 1, 2], tokens[:, 1 + 1 * 4 + 2])
    torch.testing.assert_close(model.embed(images), class_token)


def test_the_mean_is_that_of_the_patches() -> None:
    model = VisionTransformer(**SIZES, num_registers=3, pool="mean").eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.embed(images), model(images)[0].flatten(2).mean(2))
    with pytest.raises(UserError, match="pool: 'max' is neither 'token' nor 'mean'"):
        VisionTransformer(**SIZES, pool="max")


def test_registers_are_seen_by_all_tokens() -> None:
    model = VisionTransformer(**SIZES, num_registers=3).eval()
    images = torch.randn(2, 3, 16, 16)
    before = model(images)[1]
    torch.nn.init.normal_(model.reg_token)
    assert (model(images)[1] - before).abs().max() > 1e-4


def test_positions_of_another_size_are_resized(caplog) -> None:
    small, large = VisionTransformer(**SIZES), VisionTransformer(**{**SIZES, "img_size": 24})
    large.load_state_dict(small.state_dict())
    assert "positions for 16 patches resized to 36" in caplog.text
    torch.testing.assert_close(large.pos_embed[:, 0], small.pos_embed[:, 0])


def test_every_token_is_of_the_first_layer() -> None:
    of = layers(VisionTransformer(**SIZES, num_registers=3)).of
    assert {name: of(name) for name in ("cls_token", "reg_token", "pos_embed", "blocks.1.norm1.bias", "norm.bias")} == {
        "cls_token": 0, "reg_token": 0, "pos_embed": 0, "blocks.1.norm1.bias": 2, "norm.bias": 3,
    }  # fmt: skip
