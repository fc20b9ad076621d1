"""MAE of MMSelfSup."""

from ssl_ray.interop.mmselfsup.config import (
    VIT_NORM,
    Config,
    Readers,
    arguments_of,
    build_parts,
    loss_of,
    squared,
)
from ssl_ray.interop.mmselfsup.correspondence import Correspondence, under
from ssl_ray.interop.mmselfsup.modules import COMMON, VIT_FIXED, vit_architecture
from ssl_ray.interop.weights.names import MM_VIT, Rename
from ssl_ray.models import MAE, MAEPretrainDecoder, MAEPretrainHead, MAEReconstructionLoss, MAEViT


def _mae_vit(config: Config) -> MAEViT:
    names = {
        "img_size": "img_size",
        "patch_size": "patch_size",
        "mask_ratio": "mask_ratio",
        "in_channels": "in_channels",
        "drop_path_rate": "drop_path",
    }
    config = squared(config, "img_size", "patch_size")
    return MAEViT(
        **arguments_of(config, names, VIT_FIXED, elsewhere=("arch",), norm=VIT_NORM),
        **vit_architecture(config),
    )


def _mae_decoder(config: Config) -> MAEPretrainDecoder:
    same = ("num_patches", "patch_size", "embed_dim", "decoder_embed_dim")
    names = {n: n for n in (*same, "decoder_depth", "decoder_num_heads", "mlp_ratio")}
    names["in_chans"] = "in_channels"
    arguments = arguments_of(config, names, {"predict_feature_dim": None}, norm=VIT_NORM)
    return MAEPretrainDecoder(**{"embed_dim": 1024, **arguments})


def _mae_head(config: Config) -> MAEPretrainHead:
    arguments = arguments_of(config, {"norm_pix": "norm_pix", "patch_size": "patch_size"})
    return MAEPretrainHead(**arguments, loss=loss_of(config, _READERS))


_READERS: Readers = COMMON | {
    "MAEViT": _mae_vit,
    "MAEPretrainDecoder": _mae_decoder,
    "MAEPretrainHead": _mae_head,
    "MAEReconstructionLoss": lambda config: MAEReconstructionLoss(**arguments_of(config, {})),
}
_RENAMES = (Rename("neck.ln1.", "neck.decoder_norm."), *under("backbone.", MM_VIT))


def _mae(config: Config) -> MAE:
    return MAE(**build_parts(config, _READERS), **arguments_of(config, {}))


CORRESPONDENCE = Correspondence(_mae, lambda model: _RENAMES)
