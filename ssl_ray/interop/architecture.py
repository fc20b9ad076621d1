"""From the shapes of a backbone's tensors to the Spec that builds it."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ssl_ray.errors import UserError
from ssl_ray.models.backbones import CAEViT, MAEViT, MoCoV3ViT, ResNet, ResNetSobel, SimMIMSwinTransformer
from ssl_ray.models.backbones.resnet import LAYOUTS, Bottleneck
from ssl_ray.spec import Spec

# Heads leave no trace in the shapes. As published: DeiT (arXiv 2012.12877), ViT and MAE (arXiv 2111.06377).
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_MOCO_V3_HEADS = {384: 12, 768: 12}  # arXiv 2104.02057, table 1 and the official vits.py


class Guess(NamedTuple):
    """An architecture, and in words what of it the weights did not say."""

    spec: Spec
    assumed: tuple[str, ...]


def guess_architecture(tensors: Mapping[str, Tensor], algorithm: str | None = None) -> Guess:
    """The backbone whose state dict, under our names, `tensors` holds.

    algorithm: decides between Vision Transformers whose tensors are alike. Raises UserError for what is not one of
    our backbones, or cannot be told from shapes.
    """
    if "layer1.0.conv1.weight" in tensors and "conv1.weight" in tensors:
        return _resnet(tensors)
    if "layers.0.blocks.0.attn.relative_position_bias_table" in tensors:
        return _swin(tensors)
    if "cls_token" in tensors and "pos_embed" in tensors and "blocks.0.attn.qkv.weight" in tensors:
        return _vit(tensors, algorithm)
    raise UserError(
        f"no ResNet, ViT or Swin Transformer that is known here; its keys are {', '.join(list(tensors)[:3])}, ..."
    )


def _resnet(tensors: Mapping[str, Tensor]) -> Guess:
    stem, first = tensors["conv1.weight"], tensors["layer1.0.conv1.weight"]
    counts = tuple(_count(tensors, f"layer{i}") for i in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in tensors
    depths = [d for d, (b, n) in LAYOUTS.items() if n == counts and (b is Bottleneck) == bottleneck]
    if not depths:
        blocks = "bottlenecks" if bottleneck else "basic blocks"
        raise UserError(f"a ResNet of {counts} {blocks} is not known here; allowed: ResNet-18/34/50/101/152")
    width = first.shape[0]
    arguments: dict[str, Any] = {"depth": depths[0]}
    if width != 64:
        arguments["width"] = width
    if stem.shape[0] != width:
        arguments["stem_width"] = stem.shape[0]
    assumed = []
    if stem.shape[2] != 7:
        arguments["stem"] = "small"
        assumed.append("stem='small': its stride is not in the weights; 'small_s2' has stride 2")
    if stem.shape[1] == 2:
        return Guess(Spec(ResNetSobel, **arguments), tuple(assumed))
    if stem.shape[1] != 3:
        arguments["in_channels"] = stem.shape[1]
    return Guess(Spec(ResNet, **arguments), tuple(assumed))


def _vit(tensors: Mapping[str, Tensor], algorithm: str | None) -> Guess:
    width, in_channels, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    patches = tensors["pos_embed"].shape[1] - 1
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(
            f"pos_embed: {patches} patches and a class token are no square grid; only square images are known here"
        )
    arguments: dict[str, Any] = {
        "img_size": side * patch_size,
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": _count(tensors, "blocks"),
    }
    if in_channels != 3:
        arguments["in_channels"] = in_channels
    ratio = tensors["blocks.0.mlp.fc1.weight"].shape[0] / width
    if ratio != 4:
        arguments["mlp_ratio"] = ratio
    scaled, no_k_bias = "blocks.0.gamma_1" in tensors, "blocks.0.attn.q_bias" in tensors
    target: Any = MoCoV3ViT if algorithm == "moco_v3" else MAEViT
    if scaled or no_k_bias or algorithm == "cae":
        target = CAEViT
        arguments |= {"k_bias": not no_k_bias} | ({} if scaled else {"layer_scale": 0.0})
    known = _MOCO_V3_HEADS if target is MoCoV3ViT else {}
    heads = known.get(width, _HEADS.get(width))
    if heads is None:
        call = repr(Spec(target, **arguments))
        raise UserError(
            "num_heads is not in the weights, and none is published for this width; say it: --backbone "
            f"'{call.removesuffix(')')}, num_heads=N)'"
        )
    assumed = [f"num_heads={heads}: not in the weights; as published for width {width}"]
    if algorithm is None and target is MAEViT:
        assumed.append("MAEViT: other Vision Transformers have the same tensors; --algorithm decides")
    return Guess(Spec(target, **arguments, num_heads=heads), tuple(assumed))


def _swin(tensors: Mapping[str, Tensor]) -> Guess:
    width, in_channels, patch_size, _ = tensors["patch_embed.proj.weight"].shape
    depths = tuple(_count(tensors, f"layers.{i}.blocks") for i in range(_count(tensors, "layers")))
    table = "layers.{}.blocks.0.attn.relative_position_bias_table".format
    window = (math.isqrt(tensors[table(0)].shape[0]) + 1) // 2
    assumed = []
    masks = tensors.get("layers.0.blocks.1.attn_mask")  # (windows, N, N), in the authors' files
    if masks is not None:
        img_size = math.isqrt(len(masks)) * window * patch_size
    else:
        img_size = window * patch_size * 2 ** (len(depths) - 1)
        assumed.append(f"img_size={img_size}: not in the weights; there the last stage's map is one window")
    arguments: dict[str, Any] = {
        "img_size": img_size,
        "patch_size": patch_size,
        "embed_dim": width,
        "depths": depths,
        "num_heads": tuple(tensors[table(i)].shape[1] for i in range(len(depths))),
        "window_size": window,
    }
    if in_channels != 3:
        arguments["in_channels"] = in_channels
    ratio = tensors["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / width
    if ratio != 4:
        arguments["mlp_ratio"] = ratio
    return Guess(Spec(SimMIMSwinTransformer, **arguments), tuple(assumed))


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
    """How many numbered children `name` has."""
    start = f"{name}."
    return len({key.removeprefix(start).split(".")[0] for key in tensors if key.startswith(start)})
