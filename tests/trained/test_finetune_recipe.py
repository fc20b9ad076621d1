"""The recipe of a fine-tuning: fits every kind of backbone, and says what published ones say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_ray.data.labels import LabelBudget, LabelledPart
from ssl_ray.data.source import open_dataset
from ssl_ray.interop.backbone_file import TrainedBackbone, write_backbone
from ssl_ray.models import (
    CAEViT,
    MAEViT,
    MoCoV3ViT,
    ResNet,
    ResNetSobel,
    SimMIMSwinTransformer,
    VisionTransformer,
)
from ssl_ray.recipe import Recipe
from ssl_ray.resolve import resolve
from ssl_ray.spec import Spec
from ssl_ray.trained.finetune_recipe import finetune_recipe
from ssl_ray.training.preflight import preflight

VIT = {"img_size": 28, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
BACKBONES = {
    "resnet": Spec(ResNet, depth=18, width=4, stem="small", out_indices=(2, 3)),
    "sobel": Spec(ResNetSobel, depth=18, width=4, stem="small"),
    "mae": Spec(MAEViT, **VIT),
    "moco_v3": Spec(MoCoV3ViT, **VIT),
    "cae": Spec(CAEViT, **VIT),
    "vit": Spec(VisionTransformer, **VIT, num_registers=2, layer_scale=0.1),
    "swin": Spec(
        SimMIMSwinTransformer,
        img_size=28,
        patch_size=2,
        embed_dim=8,
        depths=(1, 1),
        num_heads=(1, 2),
        window_size=7,
    ),
}


def trained(name: str) -> TrainedBackbone:
    torch.manual_seed(0)
    return TrainedBackbone(
        BACKBONES[name], BACKBONES[name].build().eval(), "a test", 28, (0.5,) * 3, (0.25,) * 3
    )


def recipe(name: str, labels: str = "10%", size: int = 28, pretrained: str | None = None) -> Recipe:
    train = open_dataset("fashion").train
    part = LabelledPart(train, LabelBudget.parse(labels), 0).info
    made = finetune_recipe(
        trained(name), part, whole=train.info.num_samples, size=size, pretrained=pretrained
    )
    return resolve(made, part).recipe


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_loaded_whole_and_trained_whole(name: str, tmp_path: Path) -> None:
    file = tmp_path / "backbone.safetensors"
    write_backbone(trained(name), file)
    made = recipe(name, pretrained=str(file))
    assert Recipe.from_json(json.loads(json.dumps(made.to_json()))) == made
    preflight(made)
    model = made.algorithm.build()
    for key, value in trained(name).module.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value), key
    frozen = [key for key, p in model.named_parameters() if not p.requires_grad]
    assert frozen == (["backbone.mask_token"] if name == "swin" else [])
    images = torch.full((2, 3, 28, 28), 255, dtype=torch.uint8)
    torch.testing.assert_close(model.data_preprocessor([images])[0], torch.full((2, 3, 28, 28), 2.0))
    torch.manual_seed(5)
    scratch = recipe(name).algorithm.build()
    assert any(
        not torch.equal(scratch.backbone.state_dict()[key], value)
        for key, value in trained(name).module.state_dict().items()
    )


@pytest.mark.parametrize(
    ("labels", "batch", "epochs"), [("100%", 128, 12), ("10%", 64, 80), ("1%", 32, 80), ("1-shot", 8, 80)]
)
def test_batch_and_length_follow_the_labels(labels: str, batch: int, epochs: int) -> None:
    made = recipe("resnet", labels)
    assert (made.training.global_batch_size, made.training.epochs) == (batch, epochs)
    assert made.algorithm.kwargs["head"].kwargs["num_classes"] == 10
    assert made.optimization.warmup_epochs < epochs


@pytest.mark.parametrize(
    ("name", "lr_per_256", "layer_decay", "drop_path"),
    [
        ("mae", 5e-4, 0.65, 0.1),
        ("moco_v3", 5e-4, 0.65, 0.1),
        ("swin", 6.25e-4, 0.9, 0.1),
        ("resnet", 0.01, 1.0, None),
    ],
)
def test_large_images_get_the_published_settings(
    name: str, lr_per_256: float, layer_decay: float, drop_path: float | None
) -> None:
    made = recipe(name, "100%", size=112)
    algorithm: dict[str, Any] = made.algorithm.kwargs
    assert made.optimization.base_lr == lr_per_256
    assert algorithm["backbone"].kwargs.get("drop_path") == drop_path
    assert algorithm["layer_decay"] == 1, "from scratch all layers learn alike"
    train = open_dataset("fashion").train.info
    loaded = finetune_recipe(trained(name), train, whole=7000, size=112, pretrained="somewhere").algorithm
    assert loaded.kwargs["layer_decay"] == layer_decay
    assert (made.views.kwargs["mixup"] > 0) == (name != "resnet")
