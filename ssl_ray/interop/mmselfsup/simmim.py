"""SimMIM of MMSelfSup."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_ray.errors import UserError, nearest
from ssl_ray.interop.mmselfsup.config import (
    SWIN_NORM,
    Config,
    Readers,
    arguments_of,
    build_parts,
    loss_of,
    squared,
)
from ssl_ray.interop.mmselfsup.correspondence import Correspondence, under
from ssl_ray.interop.mmselfsup.modules import COMMON
from ssl_ray.interop.weights.names import MM_SWIN, Rename, merging_from_mm, merging_to_mm
from ssl_ray.models import (
    BaseModel,
    SimMIM,
    SimMIMHead,
    SimMIMNeck,
    SimMIMReconstructionLoss,
    SimMIMSwinTransformer,
)

_ARCHITECTURES = {  # width, blocks per stage, heads per stage
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
_LONG_NAMES = {name[0]: name for name in _ARCHITECTURES}


def _architecture(config: Config) -> dict[str, Any]:
    """`arch`, a name or a dict, as embed_dim, depths and num_heads."""
    arch: Any = config.get("arch", "T")
    if isinstance(arch, Mapping):
        width, depths, heads = (arch[k] for k in ("embed_dims", "depths", "num_heads"))
    else:
        name = _LONG_NAMES.get(arch.lower(), arch.lower())
        if name not in _ARCHITECTURES:
            raise UserError(
                f"{config['type']}: arch={arch!r} is not known here; {nearest(name, _ARCHITECTURES)}"
            )
        width, depths, heads = _ARCHITECTURES[name]
    return {"embed_dim": width, "depths": tuple(depths), "num_heads": tuple(heads)}


def _nested(config: Config) -> dict[str, Any]:
    """Settings that theirs passes on: `patch_cfg` to the embedding, `stage_cfgs.block_cfgs` to all blocks."""
    kind = {"type": config["type"]}
    patch = arguments_of(
        kind | dict(config.get("patch_cfg", {})),
        {"kernel_size": "patch_size", "stride": "stride"},
        norm=SWIN_NORM,
    )
    if patch.get("stride") != patch.get("patch_size"):
        raise UserError(
            f"{config['type']}: patch_cfg {dict(config['patch_cfg'])} is not supported; only stride = kernel_size"
        )
    patch.pop("stride", None)
    stages = config.get("stage_cfgs", {})
    if not isinstance(stages, Mapping) or not isinstance(stages.get("block_cfgs", {}), Mapping):
        raise UserError(
            f"{config['type']}: stage_cfgs={stages!r} is not supported; only one dict for all stages"
        )
    names = {"window_size": "window_size", "ffn_ratio": "mlp_ratio", "pad_small_map": "pad_small_maps"}
    blocks = arguments_of(kind | dict(stages.get("block_cfgs", {})), names, {}, ("with_cp",), SWIN_NORM)
    arguments_of(kind | dict(stages), {}, {}, ("block_cfgs", "with_cp"))
    return patch | blocks


def _simmim_swin(config: Config) -> SimMIMSwinTransformer:
    architecture = _architecture(config)
    names = {
        "img_size": "img_size",
        "in_channels": "in_channels",
        "drop_path_rate": "drop_path",
        "pad_small_map": "pad_small_maps",
    }
    fixed = {
        "out_indices": (len(architecture["depths"]) - 1,),
        "drop_rate": 0,
        "use_abs_pos_embed": False,
        "frozen_stages": -1,
        "norm_eval": False,
    }
    elsewhere = ("arch", "patch_cfg", "stage_cfgs", "with_cp")
    arguments = arguments_of(squared(config, "img_size"), names, fixed, elsewhere, SWIN_NORM)
    defaults = {"img_size": 224, "window_size": 7, "drop_path": 0.1}
    return SimMIMSwinTransformer(**{**defaults, **arguments, **architecture, **_nested(config)})


def _simmim_neck(config: Config) -> SimMIMNeck:
    return SimMIMNeck(**arguments_of(config, {n: n for n in ("in_channels", "encoder_stride")}))


def _simmim_head(config: Config) -> SimMIMHead:
    return SimMIMHead(**arguments_of(config, {"patch_size": "patch_size"}), loss=loss_of(config, _READERS))


def _simmim_loss(config: Config) -> SimMIMReconstructionLoss:
    return SimMIMReconstructionLoss(**arguments_of(config, {}, {"encoder_in_channels": 3}))


_READERS: Readers = COMMON | {
    "SimMIMSwinTransformer": _simmim_swin,
    "SimMIMNeck": _simmim_neck,
    "SimMIMHead": _simmim_head,
    "SimMIMReconstructionLoss": _simmim_loss,
}


def _simmim(config: Config) -> SimMIM:
    return SimMIM(**build_parts(config, _READERS), **arguments_of(config, {}), decay_tokens=True)


_LAYOUTS = {  # each stage halves the map, so no network has more of them
    f"backbone.layers.{i}.downsample.{name}": (merging_from_mm, merging_to_mm)
    for i in range(16)
    for name in ("norm.weight", "norm.bias", "reduction.weight")
}


def _renames(model: BaseModel) -> tuple[Rename, ...]:
    stages: int = len(model.backbone.layers)  # type: ignore[arg-type]
    return under("backbone.", (Rename(f"norm{stages - 1}.", "norm."), *MM_SWIN))


def _derived(model: BaseModel) -> dict[str, Tensor]:
    """Where a pair of cells stands in the bias table follows from the size of the window."""
    return {
        f"backbone.stages.{i}.blocks.{j}.attn.w_msa.relative_position_index": block.attn.relative_position_index
        for i, stage in enumerate(model.backbone.layers)  # type: ignore[arg-type]
        for j, block in enumerate(stage.blocks)
    }


CORRESPONDENCE = Correspondence(_simmim, _renames, layouts=_LAYOUTS, derived=_derived)
