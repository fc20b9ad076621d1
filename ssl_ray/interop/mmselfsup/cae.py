"""CAE of MMSelfSup."""

from typing import Any

from torch import Tensor, ones

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
)
from ssl_ray.interop.mmselfsup.correspondence import Correspondence
from ssl_ray.interop.mmselfsup.modules import COMMON, VIT_FIXED, vit_architecture
from ssl_ray.interop.weights.names import MM_VIT, Rename
from ssl_ray.models import CAE, BaseModel, CAEHead, CAELoss, CAENeck, CAEViT, DALLETokenizer


def _cae_vit(config: Config) -> CAEViT:
    names = {
        "img_size": "img_size",
        "patch_size": "patch_size",
        "drop_path_rate": "drop_path",
        "qkv_bias": "k_bias",  # their False keeps the bias of queries and values
        "init_values": "layer_scale",
    }
    config = squared(config, "img_size", "patch_size")
    arguments = arguments_of(config, names, VIT_FIXED, elsewhere=("arch",), norm=VIT_NORM)
    return CAEViT(**_with_scale({"k_bias": True} | arguments), **vit_architecture(config))


def _cae_neck(config: Config) -> CAENeck:
    names = {
        "embed_dims": "embed_dim",
        "num_classes": "num_tokens",
        "qkv_bias": "k_bias",
        "init_values": "layer_scale",
        "drop_path_rate": "drop_path",
        **{n: n for n in ("regressor_depth", "decoder_depth", "num_heads", "mlp_ratio")},
    }
    fixed = {"qk_scale": None, "drop_rate": 0, "attn_drop_rate": 0}
    # patch_size has no effect on them; mask_tokens_num is the algorithm's.
    elsewhere = ("patch_size", "mask_tokens_num")
    arguments: dict[str, Any] = {"regressor_depth": 6, "decoder_depth": 8, "k_bias": True}
    arguments |= arguments_of(config, names, fixed, elsewhere, VIT_NORM)
    # One setting of theirs with two meanings: a bias of the decoder's keys, and any bias in the regressor.
    return CAENeck(**_with_scale(arguments), regressor_bias=arguments["k_bias"])


def _with_scale(arguments: dict[str, Any]) -> dict[str, Any]:
    """Layer scale is off where they do not set it."""
    return arguments | {"layer_scale": arguments.get("layer_scale") or 0.0}


def _dall_e(config: Config) -> DALLETokenizer:
    weights = str((config.get("init_cfg") or {}).get("checkpoint", "dalle_encoder.pth"))
    if "://" in weights:
        raise UserError(
            f"DALL-E: download {weights} and give the file's path as checkpoint, or leave target_generator out to "
            "work without tokenizer"
        )
    arguments_of({k: v for k, v in config.items() if k != "init_cfg"}, {})
    return DALLETokenizer(weights)


_READERS: Readers = COMMON | {
    "CAEViT": _cae_vit,
    "CAENeck": _cae_neck,
    "CAEHead": lambda config: CAEHead(loss_of(config, _READERS), **arguments_of(config, {})),
    "CAELoss": lambda config: CAELoss(**arguments_of(config, {"lambd": "align_weight"})),
    "DALL-E": _dall_e,
}


def _cae(config: Config) -> CAE:
    parts = build_parts(config, _READERS)
    if config.get("target_generator") is not None:
        parts["tokenizer"] = build_module(config["target_generator"], _READERS)
    num_masked = config["neck"].get("mask_tokens_num", 75)
    return CAE(**parts, num_masked=num_masked, **arguments_of(config, {"base_momentum": "momentum"}))


# The final norm comes first: it, too, is called ln1. Names that stand anywhere come last.
_ENCODERS = ("backbone.", "teacher.backbone.")
_RENAMES = (
    Rename("teacher.", "teacher.backbone."),
    *(Rename(e + r.theirs, e + r.ours) for e in _ENCODERS for r in MM_VIT if not r.theirs.startswith(".")),
    Rename("neck.regressors.", "neck.regressor_blocks."),
    Rename("neck.decoders.", "neck.decoder_blocks."),
    Rename("neck.norm_regressor.", "neck.regressor_norm."),
    Rename("neck.norm_decoder.", "neck.decoder_norm."),
    Rename("neck.head.", "neck.decoder_pred."),
    *(Rename(f".norm1_{x}_cross.", f".norm1_{x}.") for x in "qkv"),
    *(r for r in MM_VIT if r.theirs.startswith(".")),
)


def _derived(model: BaseModel) -> dict[str, Tensor]:
    """Without layer scale their regressor holds factors that stay 1."""
    assert isinstance(model.neck, CAENeck)
    return {
        f"neck.regressors.{i}.gamma_{j}_cross": ones(model.neck.mask_token.shape[-1])
        for i, block in enumerate(model.neck.regressor_blocks)
        for j in (1, 2)
        if not isinstance(getattr(block, f"gamma_{j}_cross"), Tensor)
    }


# Their tokenizer is not learned.
_CODEBOOK = frozenset({"tokenizer.codebook", "tokenizer.fitted"})

CORRESPONDENCE = Correspondence(_cae, lambda model: _RENAMES, derived=_derived, elsewhere=_CODEBOOK)
