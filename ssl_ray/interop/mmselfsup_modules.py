"""MMSelfSup 1.x config dicts of backbones, necks, heads and losses, read as our modules.

Each module is one function and one entry of MODULES. Settings that a function does not know are refused, never
ignored.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ssl_ray.errors import UserError, nearest
from ssl_ray.models import (
    ContrastiveHead,
    CrossEntropyLoss,
    LinearNeck,
    MAEPretrainDecoder,
    MAEPretrainHead,
    MAEReconstructionLoss,
    MAEViT,
    NonLinearNeck,
    ResNet,
)

Config = Mapping[str, Any]


def arguments_of(config: Config, names: Mapping[str, str], fixed: Config | None = None) -> dict[str, Any]:
    """The config's values under our argument names.

    names: theirs -> ours. fixed: settings that we know in one value only. Nested modules and initialisation are left
    to the caller. Raises UserError for anything else.
    """
    fixed = {"norm_cfg": None, "init_cfg": None, **(fixed or {})}
    arguments = {}
    for key, value in config.items():
        if key in names:
            arguments[names[key]] = value
        elif key == "norm_cfg":
            _check_norm(config)
        elif key not in fixed and key not in ("type", "init_cfg", "data_preprocessor", *_PARTS):
            known = [*names, *fixed]
            raise UserError(
                f"{config['type']}: setting {key}={value!r} is not known here; {nearest(key, known)}"
            )
        elif fixed.get(key) is not None and _plain(value) != _plain(fixed[key]):
            raise UserError(f"{config['type']}: {key}={value!r} is not supported; only {fixed[key]!r}")
    return arguments


_PARTS = ("backbone", "neck", "head", "loss")
_NORM_DEFAULTS = {
    "BN": (1e-5, 0.1),
    "BN1d": (1e-5, 0.1),
    "BN2d": (1e-5, 0.1),
    "SyncBN": (1e-5, 0.1),
    "LN": (1e-6, None),
}


def _check_norm(config: Config) -> None:
    norm = config["norm_cfg"]
    kind = str(norm.get("type"))
    if kind not in _NORM_DEFAULTS:
        raise UserError(
            f"{config['type']}: norm_cfg type {kind!r} is not supported; {nearest(kind, _NORM_DEFAULTS)}"
        )
    eps, momentum = _NORM_DEFAULTS[kind]
    if norm.get("eps", eps) != eps or norm.get("momentum", momentum) != momentum:
        raise UserError(
            f"{config['type']}: norm_cfg {dict(norm)} is not supported; only eps {eps}, momentum {momentum}"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def type_of(config: Config) -> str:
    """`type` without scope: "mmselfsup.MoCo" -> "MoCo"."""
    if "type" not in config:
        raise UserError(
            f"config has no 'type'; its keys are {', '.join(config)}; give the dict of one model or module"
        )
    return str(config["type"]).rpartition(".")[2]


def build_module(config: Config) -> nn.Module:
    """The module that `config` (with its `type`) describes."""
    kind = type_of(config)
    if kind not in MODULES:
        raise UserError(f"module {kind!r} is not known here; {nearest(kind, MODULES)}")
    return MODULES[kind](config)


def _resnet(config: Config) -> ResNet:
    names = {
        "depth": "depth",
        "in_channels": "in_channels",
        "stem_channels": "stem_width",
        "base_channels": "width",
        "out_indices": "out_indices",
        "zero_init_residual": "zero_init_residual",
    }
    fixed = {
        "num_stages": 4,
        "strides": (1, 2, 2, 2),
        "dilations": (1, 1, 1, 1),
        "style": "pytorch",
        "deep_stem": False,
        "avg_down": False,
        "frozen_stages": -1,
        "norm_eval": False,
        "conv_cfg": None,
        "with_cp": None,
    }
    defaults = {"width": 64, "stem_width": 64, "zero_init_residual": True}
    return ResNet(**{**defaults, **arguments_of(config, names, fixed)})


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


def _moco_v2_neck(config: Config) -> NonLinearNeck:
    names = {n: n for n in ("in_channels", "hid_channels", "out_channels", "with_avg_pool")}
    arguments = arguments_of(config, names)
    return NonLinearNeck(**arguments, with_bias=True, with_last_bias=True, with_bn=False, with_last_bn=False)


def _cross_entropy_loss(config: Config) -> CrossEntropyLoss:
    fixed = {"use_sigmoid": False, "use_soft": False, "reduction": "mean"}
    return CrossEntropyLoss(**arguments_of(config, {"loss_weight": "loss_weight"}, fixed))


def _contrastive_head(config: Config) -> ContrastiveHead:
    arguments = arguments_of(config, {"temperature": "temperature"})
    return ContrastiveHead(**arguments, loss=build_module(config["loss"]) if "loss" in config else None)


_VIT_ARCHITECTURES = {  # width, blocks, heads, MLP width
    "deit-t": (192, 12, 3, 768),
    "deit-s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
}
_VIT_LONG_NAMES = {
    "base": "b",
    "deit-b": "b",
    "large": "l",
    "huge": "h",
    "deit-tiny": "deit-t",
    "deit-small": "deit-s",
}


def _mae_vit(config: Config) -> MAEViT:
    arch: Any = config.get("arch", "b")
    if isinstance(arch, Mapping):
        width, depth, heads, hidden = (
            arch[k] for k in ("embed_dims", "num_layers", "num_heads", "feedforward_channels")
        )
    else:
        arch = _VIT_LONG_NAMES.get(arch, arch)
        if arch not in _VIT_ARCHITECTURES:
            raise UserError(f"MAEViT: arch={arch!r} is not known here; {nearest(arch, _VIT_ARCHITECTURES)}")
        width, depth, heads, hidden = _VIT_ARCHITECTURES[arch]
    names = {
        "img_size": "img_size",
        "patch_size": "patch_size",
        "mask_ratio": "mask_ratio",
        "in_channels": "in_channels",
        "drop_path_rate": "drop_path",
    }
    fixed = {
        "arch": None,
        "out_indices": -1,
        "drop_rate": 0,
        "final_norm": True,
        "output_cls_token": True,
        "interpolate_mode": "bicubic",
    }
    arguments = arguments_of(config, names, fixed)
    return MAEViT(**arguments, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=hidden / width)


def _mae_decoder(config: Config) -> MAEPretrainDecoder:
    same = ("num_patches", "patch_size", "embed_dim", "decoder_embed_dim")
    names = {n: n for n in (*same, "decoder_depth", "decoder_num_heads", "mlp_ratio")}
    arguments = arguments_of(config, {**names, "in_chans": "in_channels"})
    return MAEPretrainDecoder(**{"embed_dim": 1024, **arguments})


def _mae_head(config: Config) -> MAEPretrainHead:
    arguments = arguments_of(config, {"norm_pix": "norm_pix", "patch_size": "patch_size"})
    return MAEPretrainHead(**arguments, loss=build_module(config["loss"]) if "loss" in config else None)


MODULES: dict[str, Callable[[Config], nn.Module]] = {
    "ResNet": _resnet,
    "MAEViT": _mae_vit,
    "LinearNeck": _linear_neck,
    "NonLinearNeck": _nonlinear_neck,
    "MoCoV2Neck": _moco_v2_neck,
    "MAEPretrainDecoder": _mae_decoder,
    "ContrastiveHead": _contrastive_head,
    "MAEPretrainHead": _mae_head,
    "CrossEntropyLoss": _cross_entropy_loss,
    "MAEReconstructionLoss": lambda config: MAEReconstructionLoss(**arguments_of(config, {})),
}
