"""Algorithms: one paper each, composed of backbone, neck, head and memory."""

from ssl_ray.models.algorithms.mae import MAE
from ssl_ray.models.algorithms.moco import MoCo
from ssl_ray.models.algorithms.simclr import SimCLR

__all__ = ["MAE", "MoCo", "SimCLR"]
