"""Backbones: images to features."""

from ssl_ray.models.backbones.mae_vit import MAEViT
from ssl_ray.models.backbones.resnet import ResNet

__all__ = ["MAEViT", "ResNet"]
