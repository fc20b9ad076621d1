"""Self-supervised models: algorithms and the modules they are composed of."""

from ssl_ray.models.algorithms import MAE, MoCo, SimCLR
from ssl_ray.models.backbones import MAEViT, ResNet
from ssl_ray.models.base import BaseModel, Output, ParamGroup, Progress, Samples, Views
from ssl_ray.models.heads import ContrastiveHead, MAEPretrainHead
from ssl_ray.models.losses import CrossEntropyLoss, MAEReconstructionLoss
from ssl_ray.models.memories import Queue
from ssl_ray.models.necks import LinearNeck, MAEPretrainDecoder, NonLinearNeck
from ssl_ray.models.preprocessing import DataPreprocessor
from ssl_ray.models.teacher import Teacher

__all__ = [
    "MAE",
    "BaseModel",
    "ContrastiveHead",
    "CrossEntropyLoss",
    "DataPreprocessor",
    "LinearNeck",
    "MAEPretrainDecoder",
    "MAEPretrainHead",
    "MAEReconstructionLoss",
    "MAEViT",
    "MoCo",
    "NonLinearNeck",
    "Output",
    "ParamGroup",
    "Progress",
    "Queue",
    "ResNet",
    "Samples",
    "SimCLR",
    "Teacher",
    "Views",
]
