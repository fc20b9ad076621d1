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


class _OneByOne(nn.Module):
    """A graph for one image, applied to each of a batch."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images: Tensor) -> Tensor:
        features: list[Tensor] = []
        for i in range(images.shape[0]):
            features.append(self.graph(images[i : i + 1]))
        return torch.cat(features)


def _write_torchscript(backbone: TrainedBackbone, path: Path) -> None:
    module, images = _recorded(backbone)
    with warnings.catch_warnings(), torch.no_grad():
        # It is old, and says so; and that checks of the image size are not recorded.
        warnings.simplefilter("ignore")
        graph = torch.jit.trace(module, images)  # type: ignore[no-untyped-call]
        if not _takes_any_batch(graph, images):
            graph = torch.jit.script(_OneByOne(torch.jit.trace(module, images[:1])))  # type: ignore[no-untyped-call]
        graph.save(str(path))


def _takes_any_batch(graph: nn.Module, images: Tensor) -> bool:
    """False where recording made a number of the batch's size, as it does of `len(x)` (but not of `x.shape[0]`)."""
    try:
        return len(graph(images[:1])) == 1
    except RuntimeError:
        return False


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
