"""What is kept after pretraining: a backbone that answers with one vector per image."""

from typing import Any

from torch import Tensor, nn


def pooled(backbone: nn.Module, images: Tensor) -> Tensor:
    """Features (B, D) of normalised images: the backbone's own `embed`, else the global average of its last map."""
    embed: Any = getattr(backbone, "embed", None)
    features: Tensor = embed(images) if embed is not None else backbone(images)[-1].flatten(2).mean(-1)
    return features


class Encoder(nn.Module):
    """Backbone and data preprocessor: images (B, 3, H, W), uint8 or already normalised, in; features (B, D) out."""

    def __init__(self, backbone: nn.Module, data_preprocessor: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.data_preprocessor = data_preprocessor

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features of a batch."""
        return pooled(self.backbone, self.data_preprocessor([images])[0])
