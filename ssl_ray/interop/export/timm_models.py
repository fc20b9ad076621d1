"""timm's ResNets, Vision Transformers, BEiT (for CAE) and Swin Transformers."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_ray.interop.backbone_file import TrainedBackbone
from ssl_ray.interop.export.format import Features, Format, arguments, needed
from ssl_ray.interop.export.torchvision_models import resnet_refusal
from ssl_ray.interop.weights.names import merging_moved
from ssl_ray.models.backbones import (
    CAEViT,
    MAEViT,
    MoCoV3ViT,
    ResNet,
    SimMIMSwinTransformer,
    VisionTransformer,
)
from ssl_ray.models.backbones.swin import SwinBlock

_VITS = (MAEViT, MoCoV3ViT, CAEViT, VisionTransformer)


def _refusal(backbone: TrainedBackbone) -> str | None:
    target = backbone.architecture.target
    if target in _VITS:
        return None
    if target is SimMIMSwinTransformer:
        # Ours pads a map that windows do not fill and then shifts it; timm's shifts it first.
        blocks = [block for block in backbone.module.modules() if isinstance(block, SwinBlock)]
        odd = [b for b in blocks if b.shift and b.padding not in (0, b.shift)]
        return f"a map of {odd[0].side} cells is padded otherwise there" if odd else None
    if target is ResNet:
        return resnet_refusal(backbone)
    return "timm has no such model"


def _call(backbone: TrainedBackbone) -> tuple[str, dict[str, Any]]:
    """What of `timm.models` makes the same network, with pooled features for output."""
    ours, target = arguments(backbone), backbone.architecture.target
    common = {"num_classes": 0, "in_chans": ours["in_channels"]}
    if target is ResNet:
        return f"resnet{ours['depth']}", common
    if target is SimMIMSwinTransformer:
        same = ("img_size", "patch_size", "embed_dim", "window_size", "mlp_ratio")
        lists = {name: tuple(ours[name]) for name in ("depths", "num_heads")}
        # A map that is not larger than the window is shifted there, too, if asked for.
        padded = {"always_partition": True} if ours["pad_small_maps"] else {}
        return "SwinTransformer", common | {name: ours[name] for name in same} | lists | padded
    sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    common |= {name: ours[name] for name in sizes}
    scale = {"init_values": ours.get("layer_scale") or None}
    if target is CAEViT and not ours["k_bias"]:
        return "Beit", common | scale | {"global_pool": "avg", "use_fc_norm": False}
    # Our features are the mean of patch tokens after the norm, or the class token.
    token = target is MoCoV3ViT or ours.get("pool") == "token"
    pool = {"global_pool": "token"} if token else {"global_pool": "avg", "fc_norm": False}
    registers = ours.get("num_registers", 0)
    # Registers have no position of their own in ours; there, if they have none, the class token has none either.
    apart = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    return "VisionTransformer", common | scale | pool | apart


def _their_key(key: str, backbone: TrainedBackbone) -> str | None:
    """The name in timm of our `key`; None for what only pretraining needs."""
    target = backbone.architecture.target
    if target is SimMIMSwinTransformer:
        if key == "mask_token":
            return None
        return merging_moved(key, 1)
    if target is CAEViT and arguments(backbone)["k_bias"]:
        return key.replace(".gamma_1", ".ls1.gamma").replace(".gamma_2", ".ls2.gamma")
    return key


def _write(backbone: TrainedBackbone, path: Path) -> None:
    from safetensors.torch import save

    theirs: dict[str, Tensor] = {}
    for key, value in backbone.module.state_dict().items():
        if (name := _their_key(key, backbone)) is not None:
            theirs[name] = value.contiguous()
    if "reg_token" in theirs:  # what is added to the class token can as well be part of it
        positions = theirs["pos_embed"]
        theirs["cls_token"] = theirs["cls_token"] + positions[:, :1]
        theirs["pos_embed"] = positions[:, 1:].contiguous()
    path.write_bytes(save(theirs, {"format": "pt"}))


def _reload(backbone: TrainedBackbone, path: Path) -> Features:
    from safetensors.torch import load_file

    name, options = _call(backbone)
    model = getattr(needed("timm").models, name)(**options)
    model.load_state_dict(load_file(path), strict=True)
    features: Features = model.eval()
    return features


def _usage(backbone: TrainedBackbone, path: Path) -> str:
    name, options = _call(backbone)
    call = ", ".join(f"{k}={v!r}" for k, v in options.items())
    return (
        f"model = timm.models.{name}({call}); "
        f"model.load_state_dict(safetensors.torch.load_file({str(path)!r}))"
    )


FORMAT = Format(".safetensors", _refusal, _write, _reload, _usage)
