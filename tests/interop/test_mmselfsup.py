"""Configs and state dicts of MMSelfSup; that the numbers agree is tested in tests/conformance."""

import copy

import pytest
import torch

from ssl_ray.errors import UserError
from ssl_ray.interop import mmselfsup
from ssl_ray.models import BYOL, MAE, MoCo, MoCoV3, SimCLR

RESNET = {
    "type": "ResNet",
    "depth": 18,
    "base_channels": 4,
    "stem_channels": 8,
    "norm_cfg": {"type": "SyncBN"},
}
HEAD = {"type": "ContrastiveHead", "temperature": 0.2, "loss": {"type": "mmcls.CrossEntropyLoss"}}
MOCO_V1 = {
    "type": "mmselfsup.MoCo",
    "queue_len": 12,
    "feat_dim": 6,
    "momentum": 0.99,
    "data_preprocessor": {
        "type": "SelfSupDataPreprocessor",
        "mean": (127.5, 127.5, 127.5),
        "std": (51.0, 51.0, 51.0),
        "bgr_to_rgb": True,
    },
    "backbone": RESNET,
    "neck": {"type": "LinearNeck", "in_channels": 32, "out_channels": 6},
    "head": HEAD,
}
MOCO_V2 = MOCO_V1 | {
    "neck": {
        "type": "MoCoV2Neck",
        "in_channels": 32,
        "hid_channels": 16,
        "out_channels": 6,
        "with_avg_pool": True,
    }
}
NONLINEAR = {"type": "NonLinearNeck", "in_channels": 32, "hid_channels": 16, "out_channels": 6}
SIMCLR = {"type": "SimCLR", "backbone": RESNET, "neck": NONLINEAR, "head": HEAD}


def test_moco_from_its_config():
    model = mmselfsup.from_config({"model": MOCO_V2, "train_cfg": {}})
    assert isinstance(model, MoCo)
    assert (model.momentum, model.head.temperature, model.backbone.feature_dim) == (0.99, 0.2, 32)
    assert model.queue.rows.shape == (12, 6)
    assert list(dict(model.neck.named_children())) == ["fc0", "relu0", "fc1"]
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    torch.testing.assert_close(model.data_preprocessor([white])[0], torch.full((1, 3, 2, 2), (1 - 0.5) / 0.2))


def test_simclr_and_mae_with_mmselfsups_defaults():
    assert isinstance(mmselfsup.from_config(SIMCLR), SimCLR)
    mae = mmselfsup.from_config(
        {
            "type": "MAE",
            "backbone": {"type": "MAEViT", "arch": "deit-t", "patch_size": 16, "mask_ratio": 0.75},
            "neck": {"type": "MAEPretrainDecoder", "embed_dim": 192, "decoder_depth": 1},
            "head": {"type": "MAEPretrainHead", "norm_pix": True, "loss": {"type": "MAEReconstructionLoss"}},
        }
    )
    assert isinstance(mae, MAE)
    assert (mae.backbone.num_kept, mae.backbone.feature_dim, len(mae.backbone.blocks)) == (49, 192, 12)


@pytest.mark.parametrize("config", [MOCO_V1, MOCO_V2, MOCO_V1 | {"neck": NONLINEAR}, SIMCLR])
def test_state_dict_there_and_back(config):
    trained, fresh = mmselfsup.from_config(config), mmselfsup.from_config(config)
    if isinstance(trained, MoCo):
        trained.queue.enqueue(torch.ones(5, 6))
    theirs = mmselfsup.to_state_dict(trained)
    report = mmselfsup.load_state_dict(fresh, theirs)
    assert (report.missing, report.unexpected) == ((), ())
    ours = fresh.state_dict()
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0)


def test_moco_keys_are_mmselfsups():
    keys = set(mmselfsup.to_state_dict(mmselfsup.from_config(MOCO_V2)))
    outside = {k for k in keys if "backbone" not in k and "module.0" not in k}
    neck = {f"mlp.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")}
    assert outside == {"queue", "queue_ptr", "encoder_k.steps"} | {
        prefix + name for prefix in ("neck.", "encoder_k.module.1.") for name in neck
    }
    assert mmselfsup.to_state_dict(mmselfsup.from_config(MOCO_V2))["queue"].shape == (6, 12)


def test_a_teacher_that_never_moved_is_a_copy_of_the_model():
    model = mmselfsup.from_config(MOCO_V1)
    theirs = mmselfsup.to_state_dict(mmselfsup.from_config(MOCO_V1)) | {"encoder_k.steps": torch.tensor(0)}
    theirs["encoder_k.module.1.fc.weight"] = torch.zeros(6, 32)
    mmselfsup.load_state_dict(model, theirs)
    torch.testing.assert_close(model.teacher.neck.fc.weight, model.neck.fc.weight, rtol=0, atol=0)


def test_checkpoint_file(tmp_path):
    trained, fresh = mmselfsup.from_config(MOCO_V1), mmselfsup.from_config(MOCO_V1)
    content = {
        "meta": {"epoch": 200, "cfg": "model = dict()"},
        "state_dict": mmselfsup.to_state_dict(trained),
    }
    torch.save(content, tmp_path / "epoch_200.pth")
    mmselfsup.load_checkpoint(fresh, tmp_path / "epoch_200.pth")
    torch.testing.assert_close(fresh.backbone.conv1.weight, trained.backbone.conv1.weight)


def test_incomplete_state_is_refused_and_surplus_is_reported():
    model = mmselfsup.from_config(MOCO_V1)
    theirs = mmselfsup.to_state_dict(model)
    assert mmselfsup.load_state_dict(model, theirs | {"head.extra": torch.zeros(1)}).unexpected == (
        "head.extra",
    )
    del theirs["queue"]
    with pytest.raises(UserError, match=r"1 tensors of MoCo are missing: queue\.rows"):
        mmselfsup.load_state_dict(model, theirs)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("type", "MoCoo", "did you mean 'MoCo'"),
        ("backbone.type", "ResNext", "did you mean 'ResNet'"),
        ("backbone.base_chanels", 4, "did you mean 'base_channels'"),
        ("backbone.frozen_stages", 2, "only -1"),
        ("backbone.strides", (1, 2, 2, 1), r"only \(1, 2, 2, 2\)"),
        ("backbone.norm_cfg", {"type": "BN", "momentum": 0.003}, "only eps 1e-05, momentum 0.1"),
        ("backbone.norm_cfg", {"type": "GN"}, "norm_cfg type 'GN' is not supported"),
        ("head.loss.use_sigmoid", True, "only False"),
        ("feat_dim", 128, "only 6"),
        ("data_preprocessor.bgr_to_rgb", False, "only True"),
    ],
)
def test_what_has_no_counterpart_is_refused(path, value, message):
    config = copy.deepcopy(MOCO_V1)
    *parents, last = path.split(".")
    part = config
    for name in parents:
        part = part[name]
    part[last] = value
    with pytest.raises(UserError, match=message):
        mmselfsup.from_config(config)


PREDICTOR = NONLINEAR | {"in_channels": 6, "with_avg_pool": False}
BYOL_R50 = {
    "type": "BYOL",
    "backbone": {"type": "ResNet", "depth": 50},
    "neck": NONLINEAR | {"in_channels": 2048},
    "head": {"type": "LatentPredictHead", "loss": {"type": "CosineSimilarityLoss"}, "predictor": PREDICTOR},
}
MOCO_V3_VIT = {
    "type": "MoCoV3",
    "base_momentum": 0.9,
    "backbone": {"type": "MoCoV3ViT", "arch": "mocov3-small", "img_size": 32, "patch_size": 16},
    "neck": NONLINEAR | {"in_channels": 384, "with_avg_pool": False, "vit_backbone": True},
    "head": {
        "type": "MoCoV3Head",
        "temperature": 0.5,
        "loss": {"type": "mmcls.CrossEntropyLoss", "loss_weight": 3.0},
        "predictor": PREDICTOR,
    },
}


def test_byol_with_mmselfsups_defaults():
    model = mmselfsup.from_config(BYOL_R50)
    assert isinstance(model, BYOL)
    assert (model.momentum, model.backbone.feature_dim, model.head.loss.shift_factor) == (0.996, 2048, 0.0)
    keys = set(mmselfsup.to_state_dict(model))
    assert {"target_net.steps", "target_net.module.1.fc1.weight", "head.predictor.bn0.running_mean"} <= keys


def test_moco_v3_with_a_vit():
    model = mmselfsup.from_config(MOCO_V3_VIT)
    assert isinstance(model, MoCoV3)
    assert (model.momentum, model.head.temperature, model.head.loss.loss_weight) == (0.9, 0.5, 3.0)
    assert (len(model.backbone.blocks), model.backbone.blocks[0].attn.num_heads) == (12, 12)
    assert model.backbone.patch_embed.proj.weight.requires_grad  # their default
    keys = set(mmselfsup.to_state_dict(model))
    for encoder in ("backbone.", "momentum_encoder.module.0."):
        assert {encoder + "ln1.weight", encoder + "layers.11.ln2.bias", encoder + "pos_embed"} <= keys


@pytest.mark.parametrize("vit_backbone", [False, None])
def test_moco_v3s_neck_must_know_its_backbone(vit_backbone):
    neck = {**MOCO_V3_VIT["neck"], "vit_backbone": vit_backbone}
    if vit_backbone is None:
        del neck["vit_backbone"]
    with pytest.raises(UserError, match="vit_backbone must be True with MoCoV3ViT"):
        mmselfsup.from_config(MOCO_V3_VIT | {"neck": neck})
