"""Every setting of MMSelfSup's modules arrives in ours, or is refused: none is ignored."""

import copy
from functools import reduce
from typing import Any

import pytest

from ssl_ray.errors import UserError
from ssl_ray.interop import mmselfsup
from ssl_ray.models import BaseModel

RESNET = {"type": "ResNet", "depth": 18, "base_channels": 4, "stem_channels": 8}
VIT = {"embed_dims": 88, "num_layers": 1, "num_heads": 4, "feedforward_channels": 120}
CE = {"type": "mmcls.CrossEntropyLoss"}
CONTRAST = {"type": "ContrastiveHead", "loss": CE}
LINEAR = {"type": "LinearNeck", "in_channels": 32, "out_channels": 6}
MLP = {"type": "NonLinearNeck", "in_channels": 32, "hid_channels": 16, "out_channels": 6}
PREDICTOR = MLP | {"in_channels": 6, "with_avg_pool": False}
PREDICT = {"type": "LatentPredictHead", "predictor": PREDICTOR, "loss": {"type": "CosineSimilarityLoss"}}
CLS = {"type": "ClsHead", "in_channels": 32, "num_classes": 4, "with_avg_pool": True, "loss": CE}

CONFIGS: dict[str, dict[str, Any]] = {
    "BarlowTwins": {
        "backbone": RESNET,
        "neck": MLP,
        "head": {
            "type": "LatentCrossCorrelationHead",
            "in_channels": 6,
            "loss": {"type": "CrossCorrelationLoss"},
        },
    },
    "BYOL": {"backbone": RESNET, "neck": MLP, "head": PREDICT},
    "CAE": {
        "backbone": {"type": "CAEViT", "arch": VIT, "img_size": 16, "patch_size": 4, "init_values": 0.1},
        "neck": {
            "type": "CAENeck",
            "embed_dims": 88,
            "num_heads": 4,
            "num_classes": 9,
            "mask_tokens_num": 5,
            "regressor_depth": 1,
            "decoder_depth": 1,
            "init_values": 0.1,
        },
        "head": {"type": "CAEHead", "loss": {"type": "CAELoss", "lambd": 2}},
    },
    "DeepCluster": {"backbone": RESNET, "neck": {"type": "AvgPool2dNeck"}, "head": CLS},
    "DenseCL": {
        "queue_len": 12,
        "feat_dim": 6,
        "backbone": RESNET,
        "neck": {"type": "DenseCLNeck", "in_channels": 32, "hid_channels": 16, "out_channels": 6},
        "head": CONTRAST,
    },
    "MAE": {
        "backbone": {"type": "MAEViT", "arch": VIT, "img_size": 16, "patch_size": 4},
        "neck": {
            "type": "MAEPretrainDecoder",
            "num_patches": 16,
            "patch_size": 4,
            "embed_dim": 88,
            "decoder_embed_dim": 32,
            "decoder_depth": 1,
        },
        "head": {"type": "MAEPretrainHead", "patch_size": 4, "loss": {"type": "MAEReconstructionLoss"}},
    },
    "MoCo": {"queue_len": 12, "feat_dim": 6, "backbone": RESNET, "neck": LINEAR, "head": CONTRAST},
    "MoCoV3": {
        "backbone": {"type": "MoCoV3ViT", "arch": VIT, "img_size": 16, "patch_size": 4},
        "neck": MLP | {"in_channels": 88, "with_avg_pool": False, "vit_backbone": True},
        "head": {"type": "MoCoV3Head", "predictor": PREDICTOR, "loss": CE},
    },
    "NPID": {
        "backbone": RESNET,
        "neck": LINEAR,
        "head": CONTRAST,
        "memory_bank": {"type": "SimpleMemory", "length": 20, "feat_dim": 6, "momentum": 0.5},
    },
    "ODC": {
        "backbone": RESNET,
        "neck": {"type": "ODCNeck", "in_channels": 32, "hid_channels": 16, "out_channels": 6},
        "head": CLS | {"in_channels": 6, "with_avg_pool": False},
        "memory_bank": {
            "type": "ODCMemory",
            "length": 20,
            "feat_dim": 6,
            "momentum": 0.5,
            "num_classes": 4,
            "min_cluster": 2,
        },
    },
    "RelativeLoc": {
        "backbone": RESNET,
        "neck": {"type": "RelativeLocNeck", "in_channels": 32, "out_channels": 6},
        "head": CLS | {"in_channels": 6, "num_classes": 8, "with_avg_pool": False},
    },
    "RotationPred": {"backbone": RESNET, "head": CLS},
    "SimCLR": {"backbone": RESNET, "neck": MLP, "head": CONTRAST},
    "SimMIM": {
        "backbone": {
            "type": "SimMIMSwinTransformer",
            "arch": {"embed_dims": 12, "depths": [2, 2], "num_heads": [2, 3]},
            "img_size": 32,
            "out_indices": (1,),
            "stage_cfgs": {"block_cfgs": {"window_size": 4}},
        },
        "neck": {"type": "SimMIMNeck", "in_channels": 24, "encoder_stride": 8},
        "head": {
            "type": "SimMIMHead",
            "patch_size": 4,
            "loss": {"type": "SimMIMReconstructionLoss", "encoder_in_channels": 3},
        },
    },
    "SimSiam": {"backbone": RESNET, "neck": MLP, "head": PREDICT},
    "SwAV": {
        "backbone": RESNET,
        "neck": {"type": "SwAVNeck", "in_channels": 32, "hid_channels": 16, "out_channels": 6},
        "head": {
            "type": "SwAVHead",
            "loss": {"type": "SwAVLoss", "feat_dim": 6, "num_prototypes": 7, "num_crops": [2, 6]},
        },
    },
}


def build(kind: str, path: str | None = None, value: object = None) -> BaseModel:
    """The model of a config whose entry at `path` is `value`."""
    config = copy.deepcopy({"type": kind} | CONFIGS[kind])
    if path is not None:
        *parents, last = path.split(".")
        reduce(lambda part, name: part.setdefault(name, {}), parents, config)[last] = value
    return mmselfsup.from_config(config)


def at(model: BaseModel, path: str) -> Any:
    """An attribute of a part; a number in the path is an index."""
    return reduce(
        lambda part, name: part[int(name)] if name.isdigit() else getattr(part, name), path.split("."), model
    )


def test_there_is_a_config_of_every_algorithm():
    assert CONFIGS.keys() == mmselfsup.ALGORITHMS.keys()


ARRIVES = [
    ("BarlowTwins", "head.loss.lambd", 0.3, "head.loss.lambd", 0.3),
    ("BarlowTwins", "neck.num_layers", 4, "neck.fc3.out_features", 6),
    ("BarlowTwins", "neck.with_last_bn_affine", False, "neck.bn1.affine", False),
    ("BYOL", "base_momentum", 0.9, "momentum", 0.9),
    ("BYOL", "head.loss.shift_factor", 0.5, "head.loss.shift_factor", 0.5),
    ("BYOL", "head.loss.scale_factor", 3.0, "head.loss.scale_factor", 3.0),
    ("BYOL", "head.predictor.hid_channels", 5, "head.predictor.fc0.out_features", 5),
    ("CAE", "base_momentum", 0.9, "momentum", 0.9),
    ("CAE", "head.loss.lambd", 0.3, "head.loss.align_weight", 0.3),
    ("CAE", "neck.mask_tokens_num", 7, "num_masked", 7),
    ("CAE", "neck.regressor_depth", 3, "neck.regressor_blocks.2.drop_path", 0.0),
    ("CAE", "neck.decoder_depth", 2, "neck.decoder_blocks.1.drop_path", 0.0),
    ("CAE", "neck.mlp_ratio", 2, "neck.decoder_blocks.0.mlp.fc1.out_features", 176),
    ("CAE", "backbone.img_size", (24, 24), "backbone.patch_embed.img_size", 24),
    ("DeepCluster", "head.loss.loss_weight", 3.0, "head.loss.loss_weight", 3.0),
    ("DeepCluster", "head.num_classes", 9, "head.num_classes", 9),
    ("DeepCluster", "neck.output_size", 2, "neck.output_size", 2),
    ("DenseCL", "queue_len", 18, "dense_queue.rows.shape", (18, 6)),
    ("DenseCL", "momentum", 0.9, "momentum", 0.9),
    ("DenseCL", "loss_lambda", 0.3, "loss_lambda", 0.3),
    ("DenseCL", "neck.num_grid", 3, "neck.pool.output_size", 3),
    ("DenseCL", "head.temperature", 0.7, "head.temperature", 0.7),
    ("MAE", "backbone.mask_ratio", 0.5, "backbone.num_kept", 8),
    ("MAE", "backbone.patch_size", (4, 4), "backbone.patch_embed.proj.kernel_size", (4, 4)),
    ("MAE", "head.norm_pix", True, "head.norm_pix", True),
    ("MAE", "neck.decoder_num_heads", 8, "neck.decoder_blocks.0.attn.num_heads", 8),
    ("MAE", "neck.mlp_ratio", 2, "neck.decoder_blocks.0.mlp.fc1.out_features", 64),
    ("MAE", "neck.predict_feature_dim", None, "neck.decoder_pred.out_features", 48),
    ("MoCo", "queue_len", 18, "queue.rows.shape", (18, 6)),
    ("MoCo", "momentum", 0.9, "momentum", 0.9),
    ("MoCo", "head.temperature", 0.7, "head.temperature", 0.7),
    ("MoCo", "backbone.out_indices", [3, 4], "backbone.out_indices", (3, 4)),
    ("MoCo", "backbone.with_cp", True, "backbone.feature_dim", 32),
    ("MoCo", "pretrained", None, "momentum", 0.999),
    ("MoCoV3", "base_momentum", 0.9, "momentum", 0.9),
    ("MoCoV3", "backbone.stop_grad_conv1", True, "backbone.patch_embed.proj.weight.requires_grad", False),
    ("MoCoV3", "backbone.norm_cfg", {"type": "LN", "eps": 1e-6}, "backbone.norm.eps", 1e-6),
    ("MoCoV3", "head.temperature", 0.7, "head.temperature", 0.7),
    ("NPID", "neg_num", 3, "num_negatives", 3),
    ("NPID", "ensure_neg", True, "ensure_neg", True),
    ("NPID", "memory_bank.length", 31, "memory.rows.shape", (31, 6)),
    ("NPID", "memory_bank.momentum", 0.25, "memory.momentum", 0.75),
    ("ODC", "memory_bank.momentum", 0.25, "memory.momentum", 0.75),
    ("ODC", "memory_bank.length", 31, "memory.labels.shape", (31,)),
    ("ODC", "memory_bank.min_cluster", 3, "memory.min_cluster", 3),
    ("ODC", "neck.hid_channels", 5, "neck.hid_channels", 5),
    ("RelativeLoc", "head.loss.loss_weight", 3.0, "head.loss.loss_weight", 3.0),
    ("RotationPred", "backbone.depth", 50, "backbone.feature_dim", 128),
    ("SimCLR", "neck.with_bias", True, "neck.fc0.bias.shape", (16,)),
    ("SimCLR", "neck.with_last_bias", True, "neck.fc1.bias.shape", (6,)),
    ("SimMIM", "backbone.img_size", (64, 64), "backbone.patch_embed.img_size", 64),
    ("SimMIM", "backbone.drop_path_rate", 0.3, "backbone.layers.1.blocks.1.drop_path", 0.3),
    ("SimMIM", "backbone.norm_cfg", {"type": "LN"}, "backbone.norm.eps", 1e-5),
    ("SimMIM", "backbone.stage_cfgs.block_cfgs.window_size", 2, "backbone.layers.0.blocks.0.window", 2),
    ("SimSiam", "neck.num_layers", 3, "neck.fc2.out_features", 6),
    ("SwAV", "head.loss.temperature", 0.2, "head.loss.temperature", 0.2),
    ("SwAV", "head.loss.epsilon", 0.02, "head.loss.epsilon", 0.02),
    ("SwAV", "head.loss.sinkhorn_iterations", 5, "head.loss.sinkhorn_iterations", 5),
    ("SwAV", "head.loss.num_prototypes", 11, "head.prototypes.out_features", 11),
    ("SwAV", "head.loss.crops_for_assign", [0], "crops_for_assign", [0]),
]


@pytest.mark.parametrize(("kind", "theirs", "value", "ours", "expected"), ARRIVES)
def test_a_setting_arrives(kind, theirs, value, ours, expected):
    assert at(build(kind, theirs, value), ours) == expected


REFUSED = [
    ("MoCo", "backbone.conv_cfg", {"type": "DCN"}, "conv_cfg"),
    ("MoCo", "backbone.drop_path_rate", 0.1, "drop_path_rate=0.1 is not supported; only 0"),
    ("MoCo", "backbone.norm_cfg", {"type": "BN", "requires_grad": False}, "norm_cfg"),
    ("MoCo", "backbone.norm_cfg", {"type": "LN", "eps": 1e-5}, "norm_cfg type 'LN' is not supported"),
    ("MoCo", "backbone.init_cfg", {"type": "Pretrained", "checkpoint": "r50.pth"}, "take 'r50.pth' out"),
    ("MoCo", "pretrained", "r50.pth", "take 'r50.pth' out of it"),
    ("MoCo", "head.loss.class_weight", [1.0, 2.0], "class_weight"),
    ("MoCo", "data_preprocessor", {"mean": (1, 2, 3), "std": (1, 2, 3)}, "bgr_to_rgb=False is not supported"),
    ("MAE", "backbone.norm_cfg", {"type": "LN"}, "only eps 1e-06"),
    ("MAE", "backbone.norm_cfg", {"type": "BN"}, "norm_cfg type 'BN' is not supported"),
    ("MAE", "backbone.img_size", (16, 32), r"img_size=\(16, 32\) is not supported; only squares"),
    ("MAE", "backbone.patch_cfg", {"bias": False}, "patch_cfg"),
    ("MAE", "neck.norm_cfg", {"type": "LN"}, "only eps 1e-06"),
    ("MAE", "neck.predict_feature_dim", 5, "predict_feature_dim=5 is not supported; only None"),
    ("CAE", "neck.qk_scale", 0.5, "qk_scale=0.5 is not supported; only None"),
    ("SimMIM", "backbone.norm_cfg", {"type": "LN", "eps": 1e-6}, "only eps 1e-05"),
    ("SimMIM", "backbone.stage_cfgs.block_cfgs.norm_cfg", {"type": "LN", "eps": 1e-6}, "only eps 1e-05"),
    ("SimCLR", "neck.num_layers", 1, "num_layers"),
]


@pytest.mark.parametrize(("kind", "path", "value", "message"), REFUSED)
def test_what_has_no_counterpart_is_refused(kind, path, value, message):
    with pytest.raises(UserError, match=message):
        build(kind, path, value)


def test_residual_branches_of_a_resnet_start_at_zero_only_where_its_config_says_so():
    assert build("MoCo").backbone.layer1[0].bn2.weight.any()
    assert not build("MoCo", "backbone.zero_init_residual", True).backbone.layer1[0].bn2.weight.any()


@pytest.mark.parametrize("hidden", [60, 120, 121, 352])
def test_a_hidden_layer_has_its_channels_whatever_their_ratio_is_rounded_to(hidden):
    model = build("MAE", "backbone.arch", VIT | {"embed_dims": 88, "feedforward_channels": hidden})
    assert model.backbone.blocks[0].mlp.fc1.out_features == hidden


def test_the_preprocessor_beside_a_model_is_for_a_model_that_has_none():
    def at_half(scale: float) -> dict[str, Any]:
        return {"mean": (scale,) * 3, "std": (51.0,) * 3, "bgr_to_rgb": True}

    model = {"type": "MoCo"} | CONFIGS["MoCo"]
    beside = {"model": model, "data_preprocessor": at_half(102.0)}
    assert mmselfsup.from_config(beside).data_preprocessor.shift.flatten().tolist() == pytest.approx([2] * 3)
    own = {**beside, "model": model | {"data_preprocessor": at_half(51.0)}}
    assert mmselfsup.from_config(own).data_preprocessor.shift.flatten().tolist() == pytest.approx([1] * 3)
