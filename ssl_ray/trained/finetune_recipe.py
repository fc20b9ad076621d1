"""The recipe of a fine-tuning: what published ones use for such a backbone, and for small images what suits them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW

from ssl_ray.checks import signature
from ssl_ray.data.source import DatasetInfo
from ssl_ray.data.views import finetune_views
from ssl_ray.experiments import SMALL_IMAGE
from ssl_ray.interop.backbone_file import TrainedBackbone
from ssl_ray.models.classifier import Classifier
from ssl_ray.models.heads.cls_head import ClsHead
from ssl_ray.models.losses.label_smooth_loss import LabelSmoothLoss
from ssl_ray.models.preprocessing import DataPreprocessor
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec

LARGE_DEPTH = 24  # blocks of a ViT-L


@dataclass(frozen=True)
class Protocol:
    """How a kind of backbone is fine-tuned.

    optimization: without schedule's lengths. warmup: as a share of the epochs. epochs: at the full labels; fewer labels
    get more, so that about as many images are seen, up to most_epochs. batch_size: at most; see `_batch_size`.
    backbone, views: arguments. init_std: of the head's weights.
    """

    paper: Paper
    optimization: Optimization
    warmup: float
    epochs: int
    most_epochs: int
    batch_size: int
    layer_decay: float = 1.0
    head_lr_scale: float = 1.0
    smoothing: float = 0.0
    init_std: float = 0.01
    views: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)


_MAE = Paper(
    title="Masked Autoencoders Are Scalable Vision Learners: fine-tuning",
    arxiv="2111.06377",
    year=2022,
    result="83.6 (ViT-B, 1600 epochs)",  # table 3
)
_SIMMIM = Paper(title="SimMIM: fine-tuning", arxiv="2111.09886", year=2022, result="84.0 (Swin-B)")
_SIMCLR = Paper(
    title="A Simple Framework for Contrastive Learning of Visual Representations: few labels",
    arxiv="2002.05709",
    year=2020,
    result="48.3 with 1 %, 65.6 with 10 % of the labels (ResNet-50)",  # table 7 gives the top-5 beside it
)
_NO_JITTER = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
_ADAMW = Spec(AdamW, betas=(0.9, 0.999), weight_decay=0.05)

# Table 9 of MAE, and random erasing as in its official code.
VIT = Protocol(
    paper=_MAE,
    optimization=Optimization(optimizer=_ADAMW, base_lr=5e-4, final_lr=1e-6),
    warmup=0.05,
    epochs=100,
    most_epochs=200,
    batch_size=1024,
    layer_decay=0.65,
    smoothing=0.1,
    init_std=2e-5,
    views={**_NO_JITTER, "num_ops": 2, "erase_p": 0.25, "mixup": 0.8, "cutmix": 1.0},
    backbone={"drop_path": 0.1},
)
VIT_LARGE = dataclasses.replace(VIT, epochs=50, layer_decay=0.75)
# microsoft/SimMIM, configs/swin_base__100ep/simmim_finetune__swin_base__img192_window6__100ep.yaml
SWIN = dataclasses.replace(
    VIT,
    paper=_SIMMIM,
    optimization=Optimization(optimizer=_ADAMW, base_lr=6.25e-4, final_lr=1e-6, clip_grad_norm=5.0),
    warmup=0.2,
    layer_decay=0.9,
    init_std=0.02,
)
# As MMSelfSup fine-tunes on 1 % and 10 % of the labels: a small lr, and a head that learns ten times as fast.
RESNET = Protocol(
    paper=_SIMCLR,
    optimization=Optimization(
        optimizer=Spec(SGD, momentum=0.9, weight_decay=1e-4, nesterov=True), base_lr=0.01
    ),
    warmup=0.0,
    epochs=30,
    most_epochs=60,
    batch_size=256,
    head_lr_scale=10.0,
    views={**_NO_JITTER, "interpolation": "bilinear"},
)

_SMALL_VIEWS = {
    "min_scale": 0.5,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "interpolation": "bilinear",
}
_SMALL_ADAMW = Spec(AdamW, betas=(0.9, 0.999), weight_decay=0.05)
# Images up to 64 px, narrow networks, minutes: a first choice, not searched.
SMALL_TRANSFORMER = Protocol(
    paper=_MAE,
    optimization=Optimization(optimizer=_SMALL_ADAMW, base_lr=4e-3),
    warmup=0.1,
    epochs=12,
    most_epochs=80,
    batch_size=128,
    layer_decay=0.75,
    smoothing=0.1,
    init_std=0.01,
    views=_SMALL_VIEWS,
)
SMALL_RESNET = Protocol(
    paper=_SIMCLR,
    optimization=Optimization(optimizer=_SMALL_ADAMW, base_lr=4e-3),
    warmup=0.1,
    epochs=12,
    most_epochs=80,
    batch_size=128,
    layer_decay=0.75,
    smoothing=0.1,
    views=_SMALL_VIEWS,
)
_EVALUATIONS = 8  # in the course of a run


def protocol_of(module: nn.Module, size: int) -> Protocol:
    """The protocol that suits a backbone at `size` pixels a side."""
    blocks, stages = getattr(module, "blocks", None), getattr(module, "layers", None)
    if size <= SMALL_IMAGE:
        transformer = isinstance(blocks, nn.Sequential) or isinstance(stages, nn.Sequential)
        return SMALL_TRANSFORMER if transformer else SMALL_RESNET
    if isinstance(blocks, nn.Sequential):
        return VIT_LARGE if len(blocks) >= LARGE_DEPTH else VIT
    return SWIN if isinstance(stages, nn.Sequential) else RESNET


def finetune_recipe(
    backbone: TrainedBackbone,
    labelled: DatasetInfo,
    *,
    whole: int,
    size: int,
    pretrained: str | None,
    seed: int = 0,
) -> Recipe:
    """The recipe for a backbone, not resolved yet.

    labelled: of the images that have a label; whole: images of the data set they are part of. pretrained: file of the
    backbone's weights; without one it starts from random ones, and all layers learn alike, for a lower rate of lower
    layers would only hold back what has learned nothing yet.
    """
    protocol = protocol_of(backbone.module, size)
    assert labelled.num_classes is not None
    batch = _batch_size(labelled.num_samples, protocol.batch_size)
    epochs = max(1, min(protocol.most_epochs, protocol.epochs * whole // labelled.num_samples))
    optimization = dataclasses.replace(
        protocol.optimization, warmup_epochs=round(protocol.warmup * epochs, 2)
    )
    return Recipe(
        name="finetune",
        paper=protocol.paper,
        algorithm=Spec(
            Classifier,
            backbone=_for_finetuning(backbone.architecture, protocol),
            head=Spec(
                ClsHead,
                in_channels=1,  # fitted to the backbone
                num_classes=labelled.num_classes,
                loss=Spec(LabelSmoothLoss, smoothing=protocol.smoothing),
                init_std=protocol.init_std,
            ),
            layer_decay=protocol.layer_decay if pretrained else 1.0,
            head_lr_scale=protocol.head_lr_scale if pretrained else 1.0,
            pretrained=pretrained,
            data_preprocessor=Spec(
                DataPreprocessor,
                mean=[round(x, 6) for x in backbone.mean],
                std=[round(x, 6) for x in backbone.std],
            ),
        ),
        views=Spec(finetune_views, size=size, **protocol.views),
        optimization=optimization,
        training=Training(epochs=epochs, global_batch_size=batch, seed=seed),
        evaluation=Evaluation(every_epochs=max(1, epochs // _EVALUATIONS), k=min(20, labelled.num_samples)),
    )


def _batch_size(images: int, most: int) -> int:
    """A power of two: `most`, or less so that an epoch has eight steps, but 32 as long as there are so many images."""
    batch = most
    while batch > max(32, images // 8) or batch > images:
        batch //= 2
    return max(1, batch)


def _for_finetuning(architecture: Spec, protocol: Protocol) -> Spec:
    """The backbone with all of it trained, its last map given, and the protocol's own arguments where it takes them."""
    known = signature(architecture.target).defaults
    wanted = {"stop_grad_conv1": False, "out_indices": (4,), **protocol.backbone}
    return architecture.replace(**{name: value for name, value in wanted.items() if name in known})
