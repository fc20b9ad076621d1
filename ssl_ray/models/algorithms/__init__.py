"""Algorithms: one paper each, composed of backbone, neck, head and memory."""

from ssl_ray.models.algorithms.barlow_twins import BarlowTwins
from ssl_ray.models.algorithms.byol import BYOL
from ssl_ray.models.algorithms.cae import CAE
from ssl_ray.models.algorithms.deepcluster import DeepCluster
from ssl_ray.models.algorithms.densecl import DenseCL
from ssl_ray.models.algorithms.mae import MAE
from ssl_ray.models.algorithms.moco import MoCo
from ssl_ray.models.algorithms.moco_v3 import MoCoV3
from ssl_ray.models.algorithms.npid import NPID
from ssl_ray.models.algorithms.odc import ODC
from ssl_ray.models.algorithms.relative_loc import RelativeLoc
from ssl_ray.models.algorithms.rotation_pred import RotationPred
from ssl_ray.models.algorithms.simclr import SimCLR
from ssl_ray.models.algorithms.simmim import SimMIM
from ssl_ray.models.algorithms.simsiam import SimSiam
from ssl_ray.models.algorithms.swav import SwAV

__all__ = [
    "BYOL",
    "CAE",
    "MAE",
    "NPID",
    "ODC",
    "BarlowTwins",
    "DeepCluster",
    "DenseCL",
    "MoCo",
    "MoCoV3",
    "RelativeLoc",
    "RotationPred",
    "SimCLR",
    "SimMIM",
    "SimSiam",
    "SwAV",
]
