"""Heads: from embeddings or predictions to the loss, which the head owns."""

from ssl_ray.models.heads.contrastive_head import ContrastiveHead
from ssl_ray.models.heads.mae_pretrain_head import MAEPretrainHead

__all__ = ["ContrastiveHead", "MAEPretrainHead"]
