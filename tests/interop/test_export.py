"""Our backbones in other libraries: the file alone, read as their users read it, answers as ours does."""

import sys

import pytest
import torch
import torchvision
from torch import nn

from ssl_ray.errors import UserError
from ssl_ray.interop.backbone_file import TrainedBackbone, read_backbone
from ssl_ray.interop.export import FORMATS, export, format_of
from ssl_ray.models import (
    CAEViT,
    MAEViT,
    MoCoV3ViT,
    ResNet,
    ResNetSobel,
    SimMIMSwinTransformer,
    VisionTransformer,
)
from ssl_ray.models.encoder import pooled
from ssl_ray.spec import Spec
from tests.interop.checkpoints import randomized, timm

RESNET = Spec(ResNet, depth=18)
NARROW = Spec(ResNet, depth=18, width=8, stem="small_s2")
SOBEL = Spec(ResNetSobel, depth=18, width=8, stem="small")
SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
MAE = Spec(MAEViT, **SIZES, mlp_ratio=2.0)
MOCO_V3 = Spec(MoCoV3ViT, **SIZES)
CAE = Spec(CAEViT, **SIZES)
PLAIN = Spec(VisionTransformer, **SIZES)
CAE_WITH_K_BIAS = CAE.replace(k_bias=True)
SWIN = Spec(
    SimMIMSwinTransformer,
    img_size=24,
    patch_size=2,
    embed_dim=8,
    depths=(2, 2, 2),
    num_heads=(1, 2, 4),
    window_size=4,
)


def trained(architecture: Spec, image_size: int | None = None) -> TrainedBackbone:
    size = image_size or architecture.kwargs.get("img_size", 64)
    return TrainedBackbone(architecture, randomized(architecture.build()), "made up", size)


def differ(backbone: TrainedBackbone, theirs: nn.Module) -> float:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(3, 3, backbone.image_size, backbone.image_size, generator=generator)
    with torch.no_grad():
        ours = pooled(backbone.module, images)
        assert ours.std() > 0.01, "features that could tell two networks apart"
        return (theirs(images) - ours).abs().max().item()


def test_torchvision(tmp_path) -> None:
    backbone = trained(Spec(ResNet, depth=50))
    done = export(backbone, "torchvision", tmp_path / "x.pth")
    assert done.difference < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]
    model = torchvision.models.resnet50()
    left = model.load_state_dict(torch.load(tmp_path / "x.pth"), strict=False)
    assert left.missing_keys == ["fc.weight", "fc.bias"]
    assert left.unexpected_keys == []
    model.fc = nn.Identity()
    assert differ(backbone, model.eval()) < 1e-4


@pytest.mark.parametrize(
    ("architecture", "build"),
    [
        (RESNET, lambda models: models.resnet18(num_classes=0)),
        (
            MAE,
            lambda models: models.VisionTransformer(
                16,
                4,
                embed_dim=24,
                depth=2,
                num_heads=3,
                mlp_ratio=2,
                num_classes=0,
                global_pool="avg",
                fc_norm=False,
            ),
        ),
        (
            MOCO_V3,
            lambda models: models.VisionTransformer(16, 4, embed_dim=24, depth=2, num_heads=3, num_classes=0),
        ),
        (
            CAE,
            lambda models: models.Beit(
                16, 4, embed_dim=24, depth=2, num_heads=3, num_classes=0, init_values=1.0, use_fc_norm=False
            ),
        ),
        (
            CAE_WITH_K_BIAS,
            lambda models: models.VisionTransformer(
                16,
                4,
                embed_dim=24,
                depth=2,
                num_heads=3,
                num_classes=0,
                init_values=1.0,
                global_pool="avg",
                fc_norm=False,
            ),
        ),
        (
            PLAIN.replace(pool="mean"),
            lambda models: models.VisionTransformer(
                16, 4, embed_dim=24, depth=2, num_heads=3, num_classes=0, global_pool="avg", fc_norm=False
            ),
        ),
        (
            PLAIN.replace(layer_scale=0.1, num_registers=2),
            lambda models: models.VisionTransformer(
                16,
                4,
                embed_dim=24,
                depth=2,
                num_heads=3,
                num_classes=0,
                init_values=1.0,
                reg_tokens=2,
                no_embed_class=True,
            ),
        ),
        (
            SWIN,
            lambda models: models.SwinTransformer(
                24, 2, embed_dim=8, depths=(2, 2, 2), num_heads=(1, 2, 4), window_size=4, num_classes=0
            ),
        ),
        (
            SWIN.replace(img_size=32, pad_small_maps=True),
            lambda models: models.SwinTransformer(
                32,
                2,
                embed_dim=8,
                depths=(2, 2, 2),
                num_heads=(1, 2, 4),
                window_size=4,
                num_classes=0,
                always_partition=True,
            ),
        ),
    ],
)
def test_timm(tmp_path, architecture, build) -> None:
    from safetensors.torch import load_file

    backbone = trained(architecture)
    model = build(timm().models)
    done = export(backbone, "timm", tmp_path / "x.safetensors")
    assert done.difference < 1e-4
    model.load_state_dict(load_file(tmp_path / "x.safetensors"), strict=True)
    assert differ(backbone, model.eval()) < 1e-4


@pytest.mark.parametrize("architecture", [NARROW, SOBEL, MAE, SWIN])
def test_safetensors(tmp_path, architecture) -> None:
    backbone = trained(architecture, 16 if architecture in (NARROW, SOBEL) else None)
    done = export(backbone, "safetensors", tmp_path / "x.safetensors")
    assert done.difference == 0
    read = read_backbone(tmp_path / "x.safetensors")
    assert (read.architecture, read.image_size) == (architecture, backbone.image_size)


def test_images_of_one_channel(tmp_path) -> None:
    backbone = trained(NARROW.replace(in_channels=1), 16)
    assert export(backbone, "torchscript", tmp_path / "x.ts").difference < 1e-4


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
@pytest.mark.parametrize("architecture", [NARROW, MAE, MOCO_V3, CAE, PLAIN.replace(num_registers=2), SWIN])
def test_torchscript(tmp_path, architecture) -> None:
    backbone = trained(architecture, 16 if architecture is NARROW else None)
    assert export(backbone, "torchscript", tmp_path / "x.ts").difference < 1e-4
    assert differ(backbone, torch.jit.load(tmp_path / "x.ts")) < 1e-4


class Features(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return pooled(self.backbone, images)


# Sizes of the image are numbers in a graph, and tracing says so.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("architecture", [NARROW, MAE, MOCO_V3, CAE, SWIN, SWIN.replace(img_size=20)])
def test_a_graph_of_one_image_takes_any_batch(architecture) -> None:
    backbone = trained(architecture, 16 if architecture is NARROW else None)
    one = torch.zeros(1, 3, backbone.image_size, backbone.image_size)
    assert differ(backbone, torch.jit.trace(Features(backbone.module), one)) < 1e-4


@pytest.mark.parametrize("architecture", [NARROW, MAE, SWIN])
def test_onnx(tmp_path, architecture) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: nothing to run ONNX with")
    import onnxruntime

    backbone = trained(architecture, 16 if architecture is NARROW else None)
    assert export(backbone, "onnx", tmp_path / "x.onnx").difference < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx")
    assert (
        differ(backbone, lambda x: torch.from_numpy(session.run(["features"], {"images": x.numpy()})[0]))
        < 1e-4
    )


@pytest.mark.parametrize(
    ("architecture", "name", "reason", "others"),
    [
        (NARROW, "torchvision", "64 channels in the first stage", "safetensors, onnx, torchscript"),
        (RESNET.replace(stem="small"), "timm", "7x7 convolution", "safetensors, onnx, torchscript"),
        (SOBEL, "torchvision", "no ResNet on pixels", "safetensors, onnx, torchscript"),
        (MAE, "torchvision", "no ResNet", "timm, safetensors, onnx, torchscript"),
        (SWIN, "torchvision", "no ResNet", "timm, safetensors, onnx, torchscript"),
        (SWIN.replace(pad_small_maps=True), "timm", "a map of 3 cells", "safetensors, onnx, torchscript"),
        (SWIN.replace(img_size=40), "timm", "a map of 5 cells", "safetensors, onnx, torchscript"),
        (RESNET.replace(in_channels=1), "torchvision", "3 channels", "timm, safetensors, onnx, torchscript"),
    ],
)
def test_what_has_no_counterpart_is_refused(tmp_path, architecture, name, reason, others) -> None:
    with pytest.raises(UserError, match=reason) as error:
        export(trained(architecture), name, tmp_path / "x")
    assert str(error.value).endswith(f"formats that can: {others}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path) -> None:
    backbone = trained(NARROW, 16)
    # In training mode batch norm answers otherwise than in the evaluation mode of what is read back.
    backbone.module.train()
    with pytest.raises(UserError, match=r"differ from ours by .* nothing was written"):
        export(backbone, "safetensors", tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_features_that_are_no_numbers_prove_nothing(tmp_path) -> None:
    backbone = trained(NARROW, 16)
    nn.init.constant_(backbone.module.get_parameter("conv1.weight"), float("nan"))
    with pytest.raises(UserError, match="differ from ours by nan"):
        export(backbone, "torchscript", tmp_path / "x.ts")


@pytest.mark.parametrize(("name", "package"), [("timm", "timm"), ("onnx", "onnxruntime")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, package) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if name == "onnx":
        for other in ("onnx", "onnxscript"):
            pytest.importorskip(other, reason=f"{other} is not installed, and is named first")
    with pytest.raises(UserError, match=f"pip install {package}"):
        export(trained(MAE), name, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format() -> None:
    with pytest.raises(UserError, match="did you mean 'torchscript'"):
        format_of("torchscrip")
    assert {"torchvision", "timm", "safetensors", "onnx", "torchscript"} == set(FORMATS)
