"""Graphs that need none of our code: ONNX and TorchScript. Normalised images (B, 3, H, W) in, features (B, D) out."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_ray.interop.backbone_file import TrainedBackbone
from ssl_ray.interop.export.format import Features, Format, image_shape, needed, never
from ssl_ray.models.encoder import pooled


class _Pooled(nn.Module):
    """A backbone whose output is its pooled features."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return pooled(self.backbone, images)


def _recorded(backbone: TrainedBackbone) -> tuple[nn.Module, Tensor]:
    """What is recorded, and images to record it with."""
    return _Pooled(backbone.module).eval(), torch.zeros(2, *image_shape(backbone))


def _write_onnx(backbone: TrainedBackbone, path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needed(package)
    module, images = _recorded(backbone)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's about itself
        torch.onnx.export(
            module,
            (images,),
            path,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: "batch"},),
            external_data=False,  # one file
            dynamo=True,
            verbose=False,
        )


def _reload_onnx(backbone: TrainedBackbone, path: Path) -> Features:
    session = needed("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _write_torchscript(backbone: TrainedBackbone, path: Path) -> None:
    """Recording makes a number of `len(x)`, not of `x.shape[0]`: the proof, on another batch, refuses the former."""
    module, images = _recorded(backbone)
    with warnings.catch_warnings(), torch.no_grad():
        # It is old, and says so; and that checks of the image size are not recorded.
        warnings.simplefilter("ignore")
        graph = torch.jit.trace(module, images)  # type: ignore[no-untyped-call]
        graph.save(str(path))


def _reload_torchscript(backbone: TrainedBackbone, path: Path) -> Features:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        features: Features = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return features


def _usage_onnx(backbone: TrainedBackbone, path: Path) -> str:
    return f"onnxruntime.InferenceSession({str(path)!r}).run(None, {{'images': images}})"


def _usage_torchscript(backbone: TrainedBackbone, path: Path) -> str:
    return f"torch.jit.load({str(path)!r})(images)"


ONNX = Format(".onnx", never, _write_onnx, _reload_onnx, _usage_onnx)
TORCHSCRIPT = Format(".ts", never, _write_torchscript, _reload_torchscript, _usage_torchscript)
