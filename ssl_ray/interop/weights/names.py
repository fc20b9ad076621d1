"""What other code bases call the tensors of a backbone, and ours.

Ours are torchvision's for ResNets, timm's for Vision Transformers, and the authors' for Swin Transformers.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")

Entries = Mapping[str, tuple[str, Tensor]]
"""Tensors of a backbone by name, each with the key that a file has it under."""


class Rename(NamedTuple):
    """One change of name between another code base's state dict and ours.

    A name that begins with a dot stands anywhere in a key, one that ends with a dot at its beginning, any other is
    the whole key.
    """

    theirs: str
    ours: str

    def to_ours(self, key: str) -> str:
        """Our name of their `key`."""
        return _substitute(key, self.theirs, self.ours)

    def to_theirs(self, key: str) -> str:
        """Their name of our `key`."""
        return _substitute(key, self.ours, self.theirs)


def _substitute(key: str, old: str, new: str) -> str:
    if old.startswith("."):
        return key.replace(old, new, 1)
    if old.endswith("."):
        return new + key.removeprefix(old) if key.startswith(old) else key
    return new if key == old else key


def renamed(key: str, renames: Sequence[Rename]) -> str:
    """Our name of another code base's `key`."""
    for rename in renames:
        key = rename.to_ours(key)
    return key


# MMSelfSup's names for a Vision Transformer. The final norm comes first: it, too, is called ln1.
MM_VIT = (
    Rename("ln1.", "norm."),
    Rename("patch_embed.projection.", "patch_embed.proj."),
    Rename("layers.", "blocks."),
    Rename(".ln1.", ".norm1."),
    Rename(".ln2.", ".norm2."),
    Rename(".ffn.layers.0.0.", ".mlp.fc1."),
    Rename(".ffn.layers.1.", ".mlp.fc2."),
)

# MMSelfSup's names for a Swin Transformer. There the last norm has its stage's number.
MM_SWIN = (
    Rename("patch_embed.projection.", "patch_embed.proj."),
    Rename("stages.", "layers."),
    Rename(".attn.w_msa.", ".attn."),
    Rename(".ffn.layers.0.0.", ".mlp.fc1."),
    Rename(".ffn.layers.1.", ".mlp.fc2."),
)

# MMSelfSup's two frozen convolutions. Its initialisation has drawn other numbers for them, which training kept.
MM_SOBEL = (
    Rename("sobel_layer.sobel.0.weight", "sobel.gray"),
    Rename("sobel_layer.sobel.0.bias", "sobel.gray_bias"),
    Rename("sobel_layer.sobel.1.weight", "sobel.filters"),
    Rename("sobel_layer.sobel.1.bias", "sobel.filters_bias"),
)

# torchvision's names for a Vision Transformer.
_TORCHVISION_VIT = (
    Rename("class_token", "cls_token"),
    Rename("conv_proj.", "patch_embed.proj."),
    Rename("encoder.pos_embedding", "pos_embed"),
    Rename("encoder.ln.", "norm."),
    Rename(".ln_1.", ".norm1."),
    Rename(".ln_2.", ".norm2."),
    Rename(".self_attention.in_proj_weight", ".attn.qkv.weight"),
    Rename(".self_attention.in_proj_bias", ".attn.qkv.bias"),
    Rename(".self_attention.out_proj.", ".attn.proj."),
    Rename(".mlp.0.", ".mlp.fc1."),
    Rename(".mlp.3.", ".mlp.fc2."),
    Rename(".mlp.linear_1.", ".mlp.fc1."),
    Rename(".mlp.linear_2.", ".mlp.fc2."),
)

# A torchvision ResNet as a Sequential of its children, as lightly's examples train one.
_SEQUENTIAL_RESNET = (
    Rename("0.", "conv1."),
    Rename("1.", "bn1."),
    *(Rename(f"{i + 3}.", f"layer{i}.") for i in range(1, 5)),
)


def in_our_names(found: Entries) -> dict[str, tuple[str, Tensor]]:
    """The entries under our names and in our layout, whosever names they have; what nobody here knows as it is."""
    entries = dict(found)
    for convention in _CONVENTIONS:
        entries = convention(entries)
    return entries


def _from_mmselfsup(entries: Entries) -> dict[str, tuple[str, Tensor]]:
    if not any(name.startswith("patch_embed.projection.") for name in entries):
        return {renamed(name, MM_SOBEL): entry for name, entry in entries.items()}
    stages = {name.split(".")[1] for name in entries if name.startswith("stages.")}
    renames = (Rename(f"norm{len(stages) - 1}.", "norm."), *MM_SWIN) if stages else MM_VIT
    return {
        renamed(name, renames): (key, merging_from_mm(value) if stages and ".downsample." in name else value)
        for name, (key, value) in entries.items()
    }


def _from_torchvision(entries: Entries) -> dict[str, tuple[str, Tensor]]:
    if "class_token" in entries and "conv_proj.weight" in entries:
        return {
            renamed(re.sub(r"^encoder\.layers\.encoder_layer_", "blocks.", name), _TORCHVISION_VIT): entry
            for name, entry in entries.items()
        }
    if "features.1.0.attn.relative_position_bias_table" in entries:
        return {_swin_from_torchvision(name): entry for name, entry in entries.items()}
    return dict(entries)


def _swin_from_torchvision(name: str) -> str:
    """There the embedding, the stages and the mergings between them are one list."""
    match = re.fullmatch(r"features\.(\d+)\.(.*)", name)
    if match is None:
        return name
    place, rest = int(match[1]), match[2]
    if place == 0:
        return "patch_embed." + renamed(rest, (Rename("0.", "proj."), Rename("2.", "norm.")))
    if place % 2 == 0:
        return f"layers.{place // 2 - 1}.downsample.{rest}"
    rest = renamed(rest, (Rename(".mlp.0.", ".mlp.fc1."), Rename(".mlp.3.", ".mlp.fc2.")))
    return f"layers.{place // 2}.blocks.{rest}"


def _from_sequential_resnet(entries: Entries) -> dict[str, tuple[str, Tensor]]:
    if "0.weight" not in entries or "4.0.conv1.weight" not in entries:
        return dict(entries)
    return {renamed(name, _SEQUENTIAL_RESNET): entry for name, entry in entries.items()}


def _from_dinov2(entries: Entries) -> dict[str, tuple[str, Tensor]]:
    """Its training keeps the blocks in chunks; a block's number is the last one. timm calls the registers so."""
    renames = (Rename("register_tokens", "reg_token"),)
    return {
        renamed(re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name), renames): entry
        for name, entry in entries.items()
    }


def _with_a_position_for_each_token(entries: Entries) -> dict[str, tuple[str, Tensor]]:
    """A position for the class token and each patch, none for registers, whichever of them have one in the file.

    What is added to a learned token can as well be part of it: no feature changes.
    """
    entries = dict(entries)
    if not {"cls_token", "pos_embed"} <= entries.keys() or entries["pos_embed"][1].ndim != 3:
        return entries
    key, positions = entries["pos_embed"]
    register_key, registers = entries.get("reg_token", ("", positions[:, :0]))
    count = positions.shape[1]
    if registers.shape[1] and _square(count - 1 - registers.shape[1]):
        first = 1 + registers.shape[1]
        entries["reg_token"] = register_key, registers + positions[:, 1:first]
        entries["pos_embed"] = key, torch.cat([positions[:, :1], positions[:, first:]], dim=1)
    elif _square(count) and not _square(count - 1):
        entries["pos_embed"] = key, torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return entries


def _square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def merging_moved(key: str, stages: int) -> str:
    """A Swin Transformer's key, with the merging of patches in a later stage (or earlier, `stages` < 0).

    Newer timm begins a stage with the merging that ours, the authors' and older timm's end the stage before with.
    """
    layers, downsample, rest = key.partition(".downsample.")
    number = layers.removeprefix("layers.")
    return f"layers.{int(number) + stages}{downsample}{rest}" if downsample and number.isdecimal() else key


def _merging_at_end(entries: Entries) -> dict[str, tuple[str, Tensor]]:
    """A Swin Transformer's entries with its mergings where ours are, wherever theirs were; all others as they are."""
    begins = "layers.1.downsample.reduction.weight" in entries
    ends = "layers.0.downsample.reduction.weight" in entries
    return {merging_moved(key, -1) if begins and not ends else key: entry for key, entry in entries.items()}


def merging_from_mm(weights: Tensor) -> Tensor:
    """MMSelfSup's order of the 4C inputs of a patch merging (channel, row, column) as (column, row, channel)."""
    return weights.reshape(*weights.shape[:-1], -1, 2, 2).transpose(-3, -1).flatten(-3)


def merging_to_mm(weights: Tensor) -> Tensor:
    """The inverse of `merging_from_mm`."""
    return weights.reshape(*weights.shape[:-1], 2, 2, -1).transpose(-3, -1).flatten(-3)


_CONVENTIONS: tuple[Callable[[Entries], dict[str, tuple[str, Tensor]]], ...] = (
    _from_mmselfsup,
    _from_torchvision,
    _from_sequential_resnet,
    _from_dinov2,
    _merging_at_end,
    _with_a_position_for_each_token,
)
