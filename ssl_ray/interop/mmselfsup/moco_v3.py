"""MoCo v3 of MMSelfSup, with a ViT or a ResNet."""

from ssl_ray.errors import UserError
from ssl_ray.interop.mmselfsup.config import (
    VIT_NORM,
    Config,
    Readers,
    arguments_of,
    build_module,
    build_parts,
    loss_of,
    squared,
    type_of,
)
from ssl_ray.interop.mmselfsup.correspondence import Correspondence, teacher_at, under
from ssl_ray.interop.mmselfsup.modules import COMMON, VIT_FIXED, vit_architecture
from ssl_ray.interop.weights.names import MM_VIT, Rename
from ssl_ray.models import BaseModel, MoCoV3, MoCoV3Head, MoCoV3ViT


def _moco_v3_vit(config: Config) -> MoCoV3ViT:
    names = {
        "img_size": "img_size",
        "patch_size": "patch_size",
        "in_channels": "in_channels",
        "drop_path_rate": "drop_path",
        "stop_grad_conv1": "stop_grad_conv1",
    }
    fixed = VIT_FIXED | {
        "qkv_bias": True,
        "with_cls_token": True,
        "avg_token": False,
        "pre_norm": False,
        "frozen_stages": -1,
        "norm_eval": False,
    }
    config = squared(config, "img_size", "patch_size")
    arguments = arguments_of(config, names, fixed, elsewhere=("arch",), norm=VIT_NORM)
    return MoCoV3ViT(**{"stop_grad_conv1": False, **arguments}, **vit_architecture(config))


def _moco_v3_head(config: Config) -> MoCoV3Head:
    predictor = build_module(config["predictor"], _READERS)
    arguments = arguments_of(config, {"temperature": "temperature"})
    return MoCoV3Head(predictor, **arguments, loss=loss_of(config, _READERS))


_READERS: Readers = COMMON | {"MoCoV3ViT": _moco_v3_vit, "MoCoV3Head": _moco_v3_head}


def _moco_v3(config: Config) -> MoCoV3:
    # Their neck must be told that the last feature is a list with the class token at its end; ours is a tuple like any.
    neck = dict(config["neck"])
    has_tokens = type_of(config["backbone"]) == "MoCoV3ViT"
    if neck.pop("vit_backbone", False) != has_tokens:
        raise UserError(
            f"NonLinearNeck: vit_backbone must be {has_tokens} with {type_of(config['backbone'])}"
        )
    parts = build_parts({**config, "neck": neck}, _READERS)
    return MoCoV3(**parts, **arguments_of(config, {"base_momentum": "momentum"}))


def _renames(model: BaseModel) -> tuple[Rename, ...]:
    teacher = teacher_at("momentum_encoder")
    if not isinstance(model.backbone, MoCoV3ViT):
        return teacher
    # The final norm of either, then what is named alike in both.
    vits = {**dict.fromkeys(under("backbone.", MM_VIT)), **dict.fromkeys(under("teacher.backbone.", MM_VIT))}
    return (*teacher, *sorted(vits, key=lambda rename: rename.theirs.startswith(".")))


CORRESPONDENCE = Correspondence(_moco_v3, _renames, counter="momentum_encoder.steps")
