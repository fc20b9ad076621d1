"""Configs and state dicts of MMSelfSup; that the numbers agree is tested in tests/conformance."""

import copy

import pytest
import torch

from ssl_ray.errors import UserError
from ssl_ray.interop import mmselfsup
from ssl_ray.models import MAE, MoCo, SimCLR

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
