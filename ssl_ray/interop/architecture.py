"""From the shapes of a backbone's tensors to the Spec that builds it."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ssl_ray.errors import UserError
from ssl_ray.interop.weights import groups, surplus
from ssl_ray.models.backbones import (
    CAEViT,
    MAEViT,
    MoCoV3ViT,
    ResNet,
    ResNetSobel,
    SimMIMSwinTransformer,
    VisionTransformer,
)
from ssl_ray.models.backbones.resnet import LAYOUTS, STEMS, Bottleneck
from ssl_ray.spec import Spec

# Heads leave no trace in the shapes. As published: DeiT (arXiv 2012.12877), ViT and MAE (arXiv 2111.06377).
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_MOCO_V3_HEADS = {384: 12, 768: 12}  # arXiv 2104.02057, table 1 and the official vits.py


class Guess(NamedTuple):
    """An architecture, and in words what of it the weights did not say."""

    spec: Spec
    assumed: tuple[str, ...]


def guess_architecture(
    tensors: Mapping[str, Tensor],
    algorithm: str | None = None,
    small_stem: str = "small",
    class_token: bool = False,
) -> Guess:
    """The backbone whose state dict, under our names, `tensors` holds.

    algorithm: decides between Vision Transformers whose tensors are alike. small_stem: a ResNet's whose first
    convolution is 3x3. class_token: a Vision Transformer's features are known to be its class token. Raises UserError
    for what is not one of our backbones, or cannot be told from shapes.

    Weights do not show strides and paddings, pooling and blur, the kind of GELU, the epsilon of a norm, rotary
    positions: networks that differ in nothing else cannot be told apart, which `assumed` says.
    """
    if "layer1.0.conv1.weight" in tensors and "conv1.weight" in tensors:
        return _resnet(tensors, algorithm, small_stem)
    if "layers.0.blocks.0.attn.relative_position_bias_table" in tensors:
        return _swin(tensors, algorithm)
    if "cls_token" in tensors and "pos_embed" in tensors and "blocks.0.attn.qkv.weight" in tensors:
        return _vit(tensors, algorithm, class_token)
    reasons = [sign for sign in surplus.signs(tensors) if sign not in ("layer scale", "register tokens")]
    if any(name.startswith("blocks.") for name in tensors):
        tokens = {"cls_token": "no class token", "pos_embed": "no table of positions"}
        reasons = [said for name, said in tokens.items() if name not in tensors] + reasons
    because = f" ({', '.join(reasons)})" if reasons else ""
    raise UserError(
        f"no ResNet, ViT or Swin Transformer that is known here{because}; its backbone has {groups(tensors)}"
    )


def _resnet(tensors: Mapping[str, Tensor], algorithm: str | None, small_stem: str) -> Guess:
    stem, first = _weights(tensors, "conv1.weight"), _weights(tensors, "layer1.0.conv1.weight")
    counts = tuple(_count(tensors, f"layer{i}") for i in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in tensors
    depths = [d for d, (b, n) in LAYOUTS.items() if n == counts and (b is Bottleneck) == bottleneck]
    if not depths:
        blocks = "bottlenecks" if bottleneck else "basic blocks"
        raise UserError(f"a ResNet of {counts} {blocks} is not known here; allowed: ResNet-18/34/50/101/152")
    width = first.shape[0]
    _refuse_other_resnets(tensors, width, bottleneck)
    arguments: dict[str, Any] = {"depth": depths[0]}
    if width != 64:
        arguments["width"] = width
    if stem.shape[0] != width:
        arguments["stem_width"] = stem.shape[0]
    assumed = []
    if stem.shape[2] != 7:
        arguments["stem"] = small_stem
        others = ", ".join(repr(name) for name in STEMS if name not in ("imagenet", small_stem))
        assumed.append(
            f"stem={small_stem!r}: its stride and padding are not in the weights; others with the same are {others}"
        )
    if "sobel.filters" in tensors or (algorithm == "deepcluster" and stem.shape[1] == 2):
        if "sobel.filters" not in tensors:
            assumed.append("Sobel's filters: the file has none")
        return Guess(Spec(ResNetSobel, **arguments), tuple(assumed))
    _refuse_channels(stem.shape[1])
    if algorithm is None:
        assumed.append(
            "strides and pooling as in torchvision: not in the weights; timm's resnetblur and resnetaa have the same"
        )
    return Guess(Spec(ResNet, **arguments), tuple(assumed))


def _refuse_other_resnets(tensors: Mapping[str, Tensor], width: int, bottleneck: bool) -> None:
    """Raises UserError for a ResNet of other blocks, naming what they are."""
    kind = None
    if "layer1.0.bn1.weight" in tensors and "layer1.0.bn1.running_mean" not in tensors:
        kind = "norms without running statistics (GroupNorm)"
    elif "layer2.0.downsample.1.weight" in tensors and tensors["layer2.0.downsample.1.weight"].ndim == 4:
        kind = "shortcuts with average pooling (ResNet-D)"
    elif bottleneck:
        middle, last = (_weights(tensors, f"layer1.0.conv{i}.weight") for i in (2, 3))
        if middle.shape[1] != width:
            kind = f"convolutions in {width // max(middle.shape[1], 1)} groups (ResNeXt)"
        elif last.shape[0] != 4 * width:
            kind = f"bottlenecks of {width} channels for {last.shape[0]} (a wide ResNet)"
    if kind is not None:
        raise UserError(f"a ResNet with {kind} is not known here; allowed: the plain ResNet-18/34/50/101/152")


def _refuse_channels(channels: int) -> None:
    """Raises UserError unless the images have three channels, or one, whose weights are spread over three."""
    if channels not in (1, 3):
        sobel = "; for a DeepCluster of MMSelfSup, --algorithm deepcluster" if channels == 2 else ""
        raise UserError(
            f"made for images of {channels} channels; those here have 3 (weights for 1 are spread over them){sobel}"
        )


def _vit(tensors: Mapping[str, Tensor], algorithm: str | None, class_token: bool) -> Guess:
    patches = _weights(tensors, "patch_embed.proj.weight")
    if reasons := [name for name in surplus.signs(tensors) if name.startswith("a convolutional network")]:
        raise UserError(f"a Vision Transformer with {reasons[0]} is not known here")
    width, channels, patch_size, patch_width = patches.shape
    if patch_size != patch_width:
        raise UserError(
            f"patches of {patch_size} x {patch_width} pixels are not known here; only square ones"
        )
    _refuse_channels(channels)
    positions = tensors["pos_embed"].shape[1] - 1 if tensors["pos_embed"].ndim == 3 else 0
    side = math.isqrt(max(positions, 0))
    if not side or side * side != positions:
        also = " (a distillation token has one, too)" if "dist_token" in tensors else ""
        raise UserError(
            f"pos_embed: {list(tensors['pos_embed'].shape)} is no class token and a square grid of patches{also}; "
            "only those are known here"
        )
    hidden, entering = (_weights(tensors, f"blocks.0.mlp.fc{i}.weight", 2) for i in (1, 2))
    if hidden.shape[0] != entering.shape[1]:
        raise UserError("a Vision Transformer with gated MLPs (SwiGLU) is not known here")
    if "blocks.0.attn.qkv.bias" not in tensors and "blocks.0.attn.q_bias" not in tensors:
        raise UserError("a Vision Transformer whose queries, keys and values have no bias is not known here")
    arguments: dict[str, Any] = {
        "img_size": side * patch_size,
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": _count(tensors, "blocks"),
    }
    ratio = hidden.shape[0] / width
    if ratio != 4:
        arguments["mlp_ratio"] = ratio
    target, more = _vit_class(tensors, algorithm, class_token)
    arguments |= more
    heads = (_MOCO_V3_HEADS if target is MoCoV3ViT else {}).get(width, _HEADS.get(width))
    if heads is None:
        call = repr(Spec(target, **arguments))
        raise UserError(
            "num_heads is not in the weights, and none is published for this width; say it: --backbone "
            f"'{call.removesuffix(')')}, num_heads=N)'"
        )
    assumed = [f"num_heads={heads}: not in the weights; as published for width {width}"]
    if algorithm is None:
        assumed.append("LayerNorm's epsilon 1e-6 and the exact GELU: not in the weights; as in timm")
    if target is MAEViT and algorithm is None:
        assumed.append(
            "MAEViT, whose features are the mean of the patch tokens: other Vision Transformers have the same tensors; "
            "--algorithm decides, or --backbone 'VisionTransformer(...)' for the class token"
        )
    if target is VisionTransformer:
        assumed.append(
            "pool='token': the weights do not say what is made of the tokens; pool='mean' is the other"
        )
    return Guess(Spec(target, **arguments, num_heads=heads), tuple(assumed))


def _vit_class(
    tensors: Mapping[str, Tensor], algorithm: str | None, class_token: bool
) -> tuple[Any, dict[str, Any]]:
    """Which of our Vision Transformers it is, and the arguments that only this one has."""
    scaled, no_k_bias = "blocks.0.gamma_1" in tensors, "blocks.0.attn.q_bias" in tensors
    if algorithm == "moco_v3":
        return MoCoV3ViT, {}
    if algorithm == "cae" or no_k_bias:
        return CAEViT, {"k_bias": not no_k_bias} | ({} if scaled else {"layer_scale": 0.0})
    if scaled:
        raise UserError(
            "layer scale as in CAE, but with a bias for keys: MMSelfSup's CAE (say it with --algorithm cae), or a "
            "network with rotary positions, which have no weights and are not known here"
        )
    if algorithm == "mae":
        return MAEViT, {}
    layer_scale, registers = "blocks.0.ls1.gamma" in tensors, tensors.get("reg_token")
    classifies = any(
        tensors[name].ndim == 2 for name in ("head.weight", "heads.head.weight") if name in tensors
    )
    learned = bool(
        tensors["pos_embed"][:, 0].any()
    )  # MAE's and MoCo v3's are a table that has 0 for the class token
    more_than_mae = class_token or layer_scale or registers is not None or classifies or learned
    if more_than_mae or algorithm is not None:
        more: dict[str, Any] = {"layer_scale": 1e-5} if layer_scale else {}
        return VisionTransformer, more | ({} if registers is None else {"num_registers": registers.shape[1]})
    return MAEViT, {}


def _swin(tensors: Mapping[str, Tensor], algorithm: str | None) -> Guess:
    width, channels, patch_size, _ = _weights(tensors, "patch_embed.proj.weight").shape
    _refuse_channels(channels)
    depths = tuple(_count(tensors, f"layers.{i}.blocks") for i in range(_count(tensors, "layers")))
    table = "layers.{}.blocks.0.attn.relative_position_bias_table".format
    tables = [_weights(tensors, table(i), 2) for i in range(len(depths))]
    window = (math.isqrt(tables[0].shape[0]) + 1) // 2
    assumed = (
        ["LayerNorm's epsilon 1e-5 and the exact GELU: not in the weights; as in timm"]
        if algorithm is None
        else []
    )
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
        "num_heads": tuple(table.shape[1] for table in tables),
        "window_size": window,
    }
    ratio = _weights(tensors, "layers.0.blocks.0.mlp.fc1.weight", 2).shape[0] / width
    if ratio != 4:
        arguments["mlp_ratio"] = ratio
    return Guess(Spec(SimMIMSwinTransformer, **arguments), tuple(assumed))


def _weights(tensors: Mapping[str, Tensor], name: str, axes: int = 4) -> Tensor:
    """A tensor that must be there, with so many axes. Raises UserError."""
    if name not in tensors or tensors[name].ndim != axes:
        found = f"has the shape {list(tensors[name].shape)}" if name in tensors else "is not there"
        raise UserError(f"{name} {found}; wanted are {axes} axes, as the backbones that are known here have")
    return tensors[name]


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
    """How many numbered children `name` has."""
    start = f"{name}."
    return len({key.removeprefix(start).split(".")[0] for key in tensors if key.startswith(start)})
