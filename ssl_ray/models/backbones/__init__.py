"""Backbones: images to features."""

from ssl_ray.models.backbones.cae_vit import CAEViT
from ssl_ray.models.backbones.mae_vit import MAEViT
from ssl_ray.models.backbones.moco_v3_vit import MoCoV3ViT
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.backbones.resnet_sobel import ResNetSobel
from ssl_ray.models.backbones.simmim_swin import SimMIMSwinTransformer
from ssl_ray.models.backbones.vision_transformer import VisionTransformer

__all__ = [
    "CAEViT",
    "MAEViT",
    "MoCoV3ViT",
    "ResNet",
    "ResNetSobel",
    "SimMIMSwinTransformer",
    "VisionTransformer",
]
