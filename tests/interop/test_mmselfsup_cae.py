"""What recordings of CAE do not vary: biases, layer scale, tokenizers, official checkpoints."""

import copy

import pytest
import torch

from ssl_ray.errors import UserError
from ssl_ray.interop import mmselfsup
from ssl_ray.interop.weights import load_backbone
from ssl_ray.models import CAE, CAEHead, CAENeck, CAEViT, PatchCodebook

CONFIG = {
    "type": "mmselfsup.CAE",
    "backbone": {
        "type": "CAEViT",
        "arch": {"embed_dims": 16, "num_layers": 2, "num_heads": 2, "feedforward_channels": 32},
        "img_size": 32,
        "patch_size": 8,
        "init_values": 0.1,
        "qkv_bias": False,
    },
    "neck": {
        "type": "CAENeck",
        "patch_size": 8,
        "embed_dims": 16,
        "num_heads": 2,
        "regressor_depth": 2,
        "decoder_depth": 1,
        "mlp_ratio": 2,
        "num_classes": 12,
        "init_values": 0.1,
        "mask_tokens_num": 5,
    },
    "head": {"type": "CAEHead", "loss": {"type": "CAELoss", "lambd": 2}},
    "base_momentum": 0.5,
}


def config(**changes):
    """CONFIG with values at `part__key`."""
    changed = copy.deepcopy(CONFIG)
    for path, value in changes.items():
        part, _, key = path.rpartition("__")
        (changed[part] if part else changed)[key] = value
    return changed


def build(**changes) -> CAE:
    return mmselfsup.from_config(config(**changes))


def test_settings_arrive():
    model = build()
    assert (model.num_masked, model.momentum, model.head.loss.align_weight) == (5, 0.5, 2)
    assert model.neck.num_tokens == 12
    assert model.tokenizer is None


@pytest.mark.parametrize("full", [True, False])
def test_one_bias_setting_means_different_things(full):
    keys = mmselfsup.to_state_dict(build(backbone__qkv_bias=full, neck__qkv_bias=full)).keys()
    for place in ("backbone.layers.0", "teacher.layers.1", "neck.decoders.0"):
        assert (f"{place}.attn.qkv.bias" in keys) == full
        assert ({f"{place}.attn.q_bias", f"{place}.attn.v_bias"} <= keys) == (not full)
    assert ("neck.regressors.1.cross_attn.q_bias" in keys) == full


def test_without_layer_scale_the_regressor_still_holds_ones():
    model = build(backbone__init_values=0.0, neck__init_values=0.0)
    theirs = mmselfsup.to_state_dict(model)
    assert {k for k in theirs if "gamma" in k} == {
        f"neck.regressors.{i}.gamma_{j}_cross" for i in (0, 1) for j in (1, 2)
    }
    report = mmselfsup.load_state_dict(build(backbone__init_values=0.0, neck__init_values=0.0), theirs)
    assert not report.unexpected
    assert not report.missing


def test_a_learned_codebook_is_no_part_of_their_state():
    theirs = mmselfsup.to_state_dict(build())
    backbone = CAEViT(32, 8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2)
    neck = CAENeck(16, 12, 2, 1, 2, 2, k_bias=True)
    own = CAE(backbone, neck, CAEHead(), PatchCodebook(12, 16, cell_size=2), num_masked=5)
    mmselfsup.load_state_dict(own, theirs)
    assert mmselfsup.to_state_dict(own).keys() == theirs.keys()


def test_tokenizers_come_from_files():
    url = "https://download.openmmlab.com/dalle_encoder.pth"
    with pytest.raises(UserError, match=f"download {url} and give the file's path"):
        build(target_generator={"type": "DALL-E", "init_cfg": {"checkpoint": url}})
    with pytest.raises(UserError, match=r"no file nowhere\.pth"):
        build(target_generator={"type": "DALL-E", "init_cfg": {"checkpoint": "nowhere.pth"}})
    with pytest.raises(UserError, match="'VQKD' is not known"):
        build(target_generator={"type": "VQKD"})


@pytest.mark.parametrize(("key", "value"), [("neck__qk_scale", 0.2), ("backbone__drop_rate", 0.1)])
def test_what_is_not_supported_is_refused(key, value):
    with pytest.raises(UserError, match=key.rpartition("_")[2]):
        build(**{key: value})


def test_the_official_encoder_loads():
    model = build(backbone__qkv_bias=False)
    source = build(backbone__qkv_bias=False)
    official = {f"encoder.{k}": v for k, v in source.backbone.state_dict().items()}
    official |= {f"teacher.{k}": v + 1 for k, v in source.backbone.state_dict().items()}
    assert {
        "encoder.blocks.1.attn.v_bias",
        "encoder.blocks.0.gamma_2",
        "encoder.norm.weight",
    } <= official.keys()
    load_backbone(model.backbone, official)
    for name, value in source.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value)
