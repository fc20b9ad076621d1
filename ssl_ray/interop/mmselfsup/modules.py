"""Readers of the MMSelfSup 1.x modules that several algorithms use; others are beside the algorithm that owns them.

Each module is one function and one entry of COMMON. Settings that a function does not know are refused, never
ignored.
"""

import math
from collections.abc import Mapping
from typing import Any

from ssl_ray.errors import UserError, nearest
from ssl_ray.interop.mmselfsup.config import Config, Readers, arguments_of, build_module, loss_of
from ssl_ray.models import (
    ClsHead,
    ContrastiveHead,
    CosineSimilarityLoss,
    CrossEntropyLoss,
    LatentPredictHead,
    LinearNeck,
    NonLinearNeck,
    ResNet,
)


def resnet_arguments(config: Config) -> dict[str, Any]:
    """A ResNet config under our argument names."""
    names = {
        "depth": "depth",
        "in_channels": "in_channels",
        "stem_channels": "stem_width",
        "base_channels": "width",
        "out_indices": "out_indices",
        "zero_init_residual": "zero_init_residual",
    }
    fixed = {
        "expansion": None,
        "num_stages": 4,
        "strides": (1, 2, 2, 2),
        "dilations": (1, 1, 1, 1),
        "style": "pytorch",
        "deep_stem": False,
        "avg_down": False,
        "frozen_stages": -1,
        "norm_eval": False,
        "conv_cfg": None,
        "drop_path_rate": 0,
    }
    defaults = {"width": 64, "stem_width": 64, "zero_init_residual": False}
    return {**defaults, **arguments_of(config, names, fixed, elsewhere=("with_cp",))}


def _resnet(config: Config) -> ResNet:
    return ResNet(**resnet_arguments(config))


def _linear_neck(config: Config) -> LinearNeck:
    names = {"in_channels": "in_channels", "out_channels": "out_channels", "with_avg_pool": "with_avg_pool"}
    return LinearNeck(**arguments_of(config, names))


def _nonlinear_neck(config: Config) -> NonLinearNeck:
    names = {
        n: n
        for n in (
            "in_channels",
            "hid_channels",
            "out_channels",
            "num_layers",
            "with_bias",
            "with_last_bn",
            "with_last_bn_affine",
            "with_last_bias",
            "with_avg_pool",
        )
    }
    return NonLinearNeck(**arguments_of(config, names, {"vit_backbone": False}))


def _cross_entropy_loss(config: Config) -> CrossEntropyLoss:
    fixed = {
        "use_sigmoid": False,
        "use_soft": False,
        "reduction": "mean",
        "class_weight": None,
        "pos_weight": None,
    }
    return CrossEntropyLoss(**arguments_of(config, {"loss_weight": "loss_weight"}, fixed))


def _contrastive_head(config: Config) -> ContrastiveHead:
    arguments = arguments_of(config, {"temperature": "temperature"})
    return ContrastiveHead(**arguments, loss=loss_of(config, COMMON))


def _cls_head(config: Config) -> ClsHead:
    names = {n: n for n in ("in_channels", "num_classes", "with_avg_pool")}
    arguments = arguments_of(config, names, {"vit_backbone": False})
    return ClsHead(**{"in_channels": 2048, "num_classes": 1000, **arguments}, loss=loss_of(config, COMMON))


def _cosine_similarity_loss(config: Config) -> CosineSimilarityLoss:
    names = {"shift_factor": "shift_factor", "scale_factor": "scale_factor"}
    return CosineSimilarityLoss(**arguments_of(config, names))


def _latent_predict_head(config: Config) -> LatentPredictHead:
    arguments_of(config, {})
    return LatentPredictHead(build_module(config["predictor"], COMMON), loss_of(config, COMMON))


_VIT_ARCHITECTURES = {  # width, blocks, heads, MLP width
    "s": (768, 8, 8, 2304),
    "deit-t": (192, 12, 3, 768),
    "deit-s": (384, 12, 6, 1536),
    "mocov3-s": (384, 12, 12, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
}
_VIT_LONG_NAMES = {
    "small": "s",
    "base": "b",
    "deit-b": "b",
    "deit-base": "b",
    "large": "l",
    "huge": "h",
    "deit-tiny": "deit-t",
    "deit-small": "deit-s",
    "mocov3-small": "mocov3-s",
}


# Of every ViT of theirs, beside what its own reader names.
VIT_FIXED = {
    "out_indices": -1,
    "drop_rate": 0,
    "final_norm": True,
    "output_cls_token": True,
    "interpolate_mode": "bicubic",
    "patch_cfg": {},
    "layer_cfgs": {},
}


def vit_architecture(config: Config) -> dict[str, Any]:
    """`arch` of a ViT config, a name or a dict, as embed_dim, depth, num_heads and mlp_ratio."""
    arch: Any = config.get("arch", "b")
    if isinstance(arch, Mapping):
        width, depth, heads, hidden = (
            arch[k] for k in ("embed_dims", "num_layers", "num_heads", "feedforward_channels")
        )
    else:
        arch = _VIT_LONG_NAMES.get(arch, arch)
        if arch not in _VIT_ARCHITECTURES:
            raise UserError(
                f"{config['type']}: arch={arch!r} is not known here; {nearest(arch, _VIT_ARCHITECTURES)}"
            )
        width, depth, heads, hidden = _VIT_ARCHITECTURES[arch]
    return {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": mlp_ratio(width, hidden)}


def mlp_ratio(width: int, hidden: int) -> float:
    """The ratio that gives an MLP `hidden` channels again, whatever the quotient is rounded to."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


COMMON: Readers = {
    "ResNet": _resnet,
    "LinearNeck": _linear_neck,
    "NonLinearNeck": _nonlinear_neck,
    "ContrastiveHead": _contrastive_head,
    "ClsHead": _cls_head,
    "CrossEntropyLoss": _cross_entropy_loss,
    "LatentPredictHead": _latent_predict_head,
    "CosineSimilarityLoss": _cosine_similarity_loss,
}
