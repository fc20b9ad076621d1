"""Which layer of a backbone a parameter belongs to: what layer-wise learning rates go by."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from ssl_ray.errors import UserError


class Layers(NamedTuple):
    """of: parameter's name in the backbone -> its layer, 0 the input's. top: the head's, one above the last block."""

    of: Callable[[str], int]
    top: int


def layers(backbone: nn.Module) -> Layers:
    """A backbone's layers; those of ViTs and of Swin Transformers are counted as MAE and SimMIM count them.

    ViT: embeddings 0, block i is i + 1, the last norm counts with the head. Swin: the same through all stages; what
    merges patches belongs to the block before it. ResNet: the stem 0, the stages 1 to 4. Any other backbone says it
    itself, with a method `layers()` that returns a `Layers`. Raises UserError if it does not.
    """
    own: Callable[[], Layers] | None = getattr(backbone, "layers", None)
    if isinstance(blocks := getattr(backbone, "blocks", None), nn.Sequential):
        return _vit(len(blocks))
    stages = [getattr(stage, "blocks", None) for stage in own] if isinstance(own, nn.Sequential) else [None]
    if all(isinstance(stage, nn.Sequential) for stage in stages):
        return _swin([len(stage) for stage in stages if isinstance(stage, nn.Sequential)])
    if isinstance(getattr(backbone, "layer4", None), nn.Module):
        return Layers(_resnet_layer, 5)
    if callable(own) and not isinstance(own, nn.Module):
        return own()
    raise UserError(
        f"layer_decay: the layers of {type(backbone).__name__} are not known; give it a method layers() that returns "
        "a ssl_ray.models.layers.Layers, or set algorithm.layer_decay=1"
    )


def _vit(depth: int) -> Layers:
    def of(name: str) -> int:
        first, _, rest = name.partition(".")
        if first in ("cls_token", "reg_token", "pos_embed", "mask_token", "patch_embed"):
            return 0
        return int(rest.partition(".")[0]) + 1 if first == "blocks" else depth + 1

    return Layers(of, depth + 1)


def _swin(depths: list[int]) -> Layers:
    total = sum(depths)

    def of(name: str) -> int:
        parts = name.split(".")
        if parts[0] in ("mask_token", "patch_embed"):
            return 0
        if parts[0] != "layers":
            return total + 1
        stage = int(parts[1])
        if parts[2] == "blocks":
            return sum(depths[:stage]) + int(parts[3]) + 1
        return sum(depths[: stage + 1])

    return Layers(of, total + 1)


def _resnet_layer(name: str) -> int:
    """layer3.0.conv1.weight -> 3; whatever comes before the stages -> 0."""
    first = name.partition(".")[0]
    return int(first.removeprefix("layer")) if first.startswith("layer") else 0
