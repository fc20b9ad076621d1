"""Losses: functions of predictions and targets."""

from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.models.losses.mae_reconstruction_loss import MAEReconstructionLoss

__all__ = ["CrossEntropyLoss", "MAEReconstructionLoss"]
