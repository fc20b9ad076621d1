"""torchvision's ResNets: names and shapes are ours, without the classifier."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_ray.interop.backbone_file import TrainedBackbone
from ssl_ray.interop.export.format import Features, Format, arguments
from ssl_ray.models.backbones.resnet import ResNet


def resnet_refusal(backbone: TrainedBackbone) -> str | None:
    """Why a backbone is none of the ResNets as published, None if it is."""
    if backbone.architecture.target is not ResNet:
        return "it is no ResNet on pixels"
    given = arguments(backbone)
    if given["width"] != 64 or given["stem_width"] not in (None, 64):
        return "its ResNets have 64 channels in the first stage"
    if given["stem"] != "imagenet":
        return "its ResNets begin with a 7x7 convolution and max-pool"
    return None


def _refusal(backbone: TrainedBackbone) -> str | None:
    if reason := resnet_refusal(backbone):
        return reason
    return None if arguments(backbone)["in_channels"] == 3 else "its ResNets take 3 channels"


def _write(backbone: TrainedBackbone, path: Path) -> None:
    torch.save(backbone.module.state_dict(), path)


def _reload(backbone: TrainedBackbone, path: Path) -> Features:
    from torchvision import models

    model: Any = getattr(models, f"resnet{arguments(backbone)['depth']}")(weights=None)
    model.fc = nn.Identity()
    model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    features: Features = model.eval()
    return features


def _usage(backbone: TrainedBackbone, path: Path) -> str:
    return (
        f"model = torchvision.models.resnet{arguments(backbone)['depth']}(); model.fc = torch.nn.Identity(); "
        f"model.load_state_dict(torch.load({str(path)!r}))"
    )


FORMAT = Format(".pth", _refusal, _write, _reload, _usage)
