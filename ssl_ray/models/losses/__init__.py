"""Losses: functions of predictions and targets."""

from ssl_ray.models.losses.cae_loss import CAELoss
from ssl_ray.models.losses.cosine_similarity_loss import CosineSimilarityLoss
from ssl_ray.models.losses.cross_correlation_loss import CrossCorrelationLoss
from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.models.losses.label_smooth_loss import LabelSmoothLoss
from ssl_ray.models.losses.mae_reconstruction_loss import MAEReconstructionLoss
from ssl_ray.models.losses.simmim_reconstruction_loss import SimMIMReconstructionLoss
from ssl_ray.models.losses.swav_loss import SwAVLoss

__all__ = [
    "CAELoss",
    "CosineSimilarityLoss",
    "CrossCorrelationLoss",
    "CrossEntropyLoss",
    "LabelSmoothLoss",
    "MAEReconstructionLoss",
    "SimMIMReconstructionLoss",
    "SwAVLoss",
]
