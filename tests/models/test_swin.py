"""Against torchvision's Swin Transformer, an implementation by others, and by what an output cell depends on."""

import re

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

from ssl_ray.errors import UserError
from ssl_ray.models import SimMIMSwinTransformer
from ssl_ray.models.backbones.drop_path import dropped
from ssl_ray.models.backbones.swin import (
    PatchMerging,
    SwinBlock,
    WindowAttention,
    departition,
    partition,
)


def swin(**settings) -> SimMIMSwinTransformer:
    torch.manual_seed(0)
    defaults = {
        "img_size": 48,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "window_size": 3,
    }
    return SimMIMSwinTransformer(**(defaults | settings)).double()


def from_torchvision(key: str) -> str:
    """Its name of a tensor, as the authors'."""
    stage = re.match(r"features\.(\d+)\.(.*)", key)
    if stage is None:
        return key
    number, rest = int(stage[1]), stage[2]
    if number == 0:
        return {"0": "patch_embed.proj.", "2": "patch_embed.norm."}[rest[0]] + rest[2:]
    if number % 2 == 0:
        return f"layers.{number // 2 - 1}.downsample.{rest}"
    rest = rest.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
    return f"layers.{number // 2}.blocks.{rest}"


@pytest.mark.parametrize(("size", "window"), [(48, 3), (44, 4), (52, 5)])
def test_equals_torchvisions(size, window):
    """Windows that fill the map and windows that need padding; maps of even and odd side; shifted or not."""
    torch.manual_seed(0)
    theirs = SwinTransformer([4, 4], 8, [2, 2], [2, 4], [window, window], stochastic_depth_prob=0.0).double()
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.3)
    ours = swin(img_size=size, window_size=window)
    state = {from_torchvision(k): v for k, v in theirs.state_dict().items() if not k.startswith("head.")}
    index = {k: v for k, v in state.items() if k.endswith("relative_position_index")}
    report = ours.load_state_dict({k: v for k, v in state.items() if k not in index}, strict=False)
    assert (report.missing_keys, report.unexpected_keys) == (["mask_token"], [])
    for key, value in index.items():
        assert torch.equal(ours.get_buffer(key).flatten(), value)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    expected = theirs.norm(theirs.features(x)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours(x)[0], expected, rtol=1e-9, atol=1e-9)


def test_names_are_the_authors():
    block = "layers.1.blocks.1."
    keys = {key.removeprefix(block) for key in swin().state_dict() if key.startswith(block)}
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    weights = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert keys == weights | {"attn.relative_position_bias_table"}
    elsewhere = {key for key in swin().state_dict() if ".blocks." not in key}
    names = ("patch_embed.proj", "patch_embed.norm", "layers.0.downsample.norm", "norm")
    weights = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert elsewhere == weights | {"mask_token", "layers.0.downsample.reduction.weight"}


def test_partition_cuts_squares_row_by_row():
    cells = torch.arange(36).view(1, 6, 6, 1)
    windows = partition(cells, 3)
    assert windows[0, 1, :, 0].tolist() == [3, 4, 5, 9, 10, 11, 15, 16, 17]
    assert torch.equal(departition(windows, 3), cells)


def groups_along_an_axis(side: int, window: int, shift: int) -> list[set[int]]:
    """Cells that attend to each other: windows begin `shift` cells late, and none reaches around the edge."""
    starts = sorted({0, *range(shift, side, window)})
    return [set(range(a, b)) for a, b in zip(starts, [*starts[1:], side], strict=True)]


@pytest.mark.parametrize(("side", "window", "shift"), [(6, 3, 0), (6, 3, 1), (8, 4, 2), (6, 2, 1)])
def test_a_cell_depends_on_its_window_and_on_nothing_else(side, window, shift):
    torch.manual_seed(0)
    block = SwinBlock(4, side, 2, window, shift).double()
    x = torch.randn(1, side, side, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda cells: block._attend(cells).sum(3), x)
    depends = jacobian.abs().sum(-1).squeeze() > 1e-12  # (row, column, row, column)
    group = {cell: g for g in groups_along_an_axis(side, window, shift) for cell in g}
    together = torch.tensor([[other in group[cell] for other in range(side)] for cell in range(side)])
    assert torch.equal(depends, together[:, None, :, None] & together[None, :, None, :])


def test_attention_is_softmax_of_products_and_bias_by_displacement():
    torch.manual_seed(0)
    attention = WindowAttention(6, 2, 3).double()
    nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(1, 1, 4, 6, dtype=torch.float64)
    q, k, v = attention.qkv(x[0, 0]).view(4, 3, 3, 2).permute(1, 2, 0, 3)  # each (head, cell, 2)
    out = torch.zeros(4, 3, 2, dtype=torch.float64)
    for head in range(3):
        for i in range(4):
            logits = torch.stack([q[head, i] @ k[head, j] / 2**0.5 for j in range(4)])
            for j in range(4):
                down, right = i // 2 - j // 2, i % 2 - j % 2
                logits[j] += attention.relative_position_bias_table[(down + 1) * 3 + right + 1, head]
            out[i, head] = logits.softmax(0) @ v[head]
    expected = attention.proj(out.flatten(1))
    torch.testing.assert_close(attention(x, torch.zeros(1, 4, 4))[0, 0], expected)


def test_merging_joins_neighbours_in_the_authors_order():
    torch.manual_seed(0)
    merging, x = PatchMerging(3), torch.randn(2, 5, 5, 3)
    full = torch.zeros(2, 6, 6, 3)
    full[:, :5, :5] = x
    four = [full[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    torch.testing.assert_close(merging(x), merging.reduction(merging.norm(torch.cat(four, dim=3))))


def test_a_window_shrinks_to_the_map_unless_small_maps_are_padded():
    shrunk, padded = (swin(window_size=8, pad_small_maps=pad) for pad in (False, True))
    assert [b.window for s in shrunk.layers for b in s.blocks] == [8, 8, 6, 6]
    assert [b.shift for s in shrunk.layers for b in s.blocks] == [0, 4, 0, 0]
    assert [b.window for s in padded.layers for b in s.blocks] == [8, 8, 8, 8]
    assert [b.shift for s in padded.layers for b in s.blocks] == [0, 4, 0, 4]
    x = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    assert shrunk(x)[0].shape == padded(x)[0].shape == (1, 16, 6, 6)


def test_widths_strides_and_the_size_of_swin_t():
    backbone = swin(depths=(1, 1, 1), num_heads=(2, 2, 2))
    assert (backbone.feature_dim, backbone.stride) == (32, 16)
    with torch.device("meta"):
        tiny = SimMIMSwinTransformer(224, 4, 3, 96, (2, 2, 6, 2), (3, 6, 12, 24), 7)
    # table 7 of the Swin paper: 28 M with a classifier of 769 000; and a mask token
    assert sum(p.numel() for p in tiny.parameters()) == 28_288_354 - 769_000 + 96


def test_what_is_hidden_cannot_be_seen():
    backbone, x = swin(), torch.randn(2, 3, 48, 48, dtype=torch.float64)
    mask = torch.zeros(2, 12, 12, dtype=torch.uint8)
    mask[0, 2:6, 4:8] = 1
    mask[1] = 1
    other = x.clone()
    other[0, :, 8:24, 16:32] += 1
    other[1] += 1
    first, second = (backbone(images, mask)[0] for images in (x, other))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.allclose(backbone(x)[0], backbone(other)[0])
    assert not torch.allclose(backbone(x)[0], first)
    torch.testing.assert_close(backbone(x, torch.zeros_like(mask))[0], backbone(x)[0])


def test_drop_path_drops_whole_images_in_training_and_grows_with_depth():
    torch.manual_seed(0)
    x = torch.ones(1000, 2, 3)
    out = dropped(x, 0.5, training=True)
    assert set(out.flatten(1).unique(dim=0).sum(1).tolist()) == {0, 12}
    assert 0.9 < out.mean() < 1.1
    assert dropped(x, 0.5, training=False) is x
    rates = [b.drop_path for s in swin(drop_path=0.3).layers for b in s.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_gradients_reach_every_parameter():
    backbone = swin(window_size=8, pad_small_maps=True)
    mask = torch.randint(2, (2, 12, 12))
    backbone(torch.randn(2, 3, 48, 48, dtype=torch.float64), mask)[0].square().sum().backward()
    for name, p in backbone.named_parameters():
        assert p.grad is not None, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": (2, 2, 2)}, "3 stages, num_heads: 2"),
        ({"num_heads": (3, 4)}, "num_heads: 3 does not divide the width 8"),
        ({"patch_size": 5}, "patch_size: 5 does not divide img_size 48"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        swin(**settings)


def test_other_masks_and_images_than_it_was_built_for_are_refused():
    images: Tensor = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    with pytest.raises(UserError, match=r"mask: \(2, 6, 6\) for patches \(2, 12, 12\)"):
        swin()(images, torch.zeros(2, 6, 6))
    with pytest.raises(UserError, match="img_size: built for 48 x 48, got 32 x 32"):
        swin()(images[:, :, :32, :32])
