"""Heads: from embeddings or predictions to the loss, which the head owns."""

from ssl_ray.models.heads.cae_head import CAEHead
from ssl_ray.models.heads.cls_head import ClsHead
from ssl_ray.models.heads.contrastive_head import ContrastiveHead
from ssl_ray.models.heads.latent_cross_correlation_head import LatentCrossCorrelationHead
from ssl_ray.models.heads.latent_predict_head import LatentPredictHead
from ssl_ray.models.heads.mae_pretrain_head import MAEPretrainHead
from ssl_ray.models.heads.moco_v3_head import MoCoV3Head
from ssl_ray.models.heads.simmim_head import SimMIMHead
from ssl_ray.models.heads.swav_head import SwAVHead

__all__ = [
    "CAEHead",
    "ClsHead",
    "ContrastiveHead",
    "LatentCrossCorrelationHead",
    "LatentPredictHead",
    "MAEPretrainHead",
    "MoCoV3Head",
    "SimMIMHead",
    "SwAVHead",
]
