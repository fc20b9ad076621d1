"""Our own format: safetensors under our names, with the architecture."""

from pathlib import Path

from ssl_ray.interop.backbone_file import TrainedBackbone, read_backbone, write_backbone
from ssl_ray.interop.export.format import Features, Format, never
from ssl_ray.models.encoder import pooled


def _reload(backbone: TrainedBackbone, path: Path) -> Features:
    read = read_backbone(path)
    return lambda images: pooled(read.module, images)


def _usage(backbone: TrainedBackbone, path: Path) -> str:
    return f"ssl_ray.interop.load_backbone({backbone.architecture.name}(...), {str(path)!r})"


FORMAT = Format(".safetensors", never, write_backbone, _reload, _usage)
