"""Every algorithm as its SMALL recipe composes it, and otherwise; with real views of a few of the embedded images."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_ray import experiments
from ssl_ray.data.pipeline import make_batch
from ssl_ray.data.source import Source, open_dataset
from ssl_ray.data.sources.base import Subset
from ssl_ray.evaluation.extract import TrainingSet
from ssl_ray.models import BaseModel, LinearNeck, MoCoV3ViT, ResNetSobel
from ssl_ray.recipe import Recipe, overrides
from ssl_ray.resolve import resolve
from ssl_ray.spec import Spec

# Published compositions that no SMALL has: what they are called here -> the experiment, and settings of its SMALL.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "moco_v1": ("moco", {"algorithm.neck": Spec(LinearNeck, in_channels=128, out_channels=64)}),
    "moco_v3_vit": (
        "moco_v3",
        {
            "algorithm.backbone": Spec(
                MoCoV3ViT, img_size=28, patch_size=4, embed_dim=48, depth=2, num_heads=4
            ),
            "algorithm.neck.with_avg_pool": False,
            "algorithm.decay_norms": True,
        },
    ),
    "swav_without_queue": ("swav", {"algorithm.queue_size": 0}),
    "deepcluster_sobel": (
        "deepcluster",
        {"algorithm.backbone": Spec(ResNetSobel, depth=18, width=16, stem="small_s2")},
    ),
}
NAMES = [*experiments.names(), *VARIANTS]
IMAGES = 256


@functools.cache
def source(images: int = IMAGES) -> Source:
    """The first images of the embedded data set."""
    return Subset(open_dataset("fashion").train, 0, images)


def recipe(name: str, batch: int, settings: dict[str, Any] | None = None, images: int = IMAGES) -> Recipe:
    """SMALL, or a variant of it, resolved against `source(images)`."""
    experiment, variant = VARIANTS.get(name, (name, {}))
    small: Recipe = experiments.load(experiment).SMALL
    settings = {"training.global_batch_size": batch, "evaluation.k": 5} | variant | (settings or {})
    return resolve(overrides(small, settings), source(images).info).recipe


def batch(recipe: Recipe, rows: int, epoch: int = 0) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Views (uint8) and samples of images 0..rows-1, as the stream hands them to the loop."""
    indices = np.arange(rows)
    pipeline = recipe.views.build()
    columns, broken = make_batch(pipeline, source(rows).read(indices), indices, seed=0, epoch=epoch)
    assert not broken
    tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
    views = [tensors.pop(f"view_{i}").permute(0, 3, 1, 2) for i in range(len(pipeline.sizes))]
    return views, tensors


def extract(recipe: Recipe, algorithm: BaseModel, images: int = IMAGES) -> TrainingSet:
    """What `before_epoch` gets; this rank's share of `source(images)`."""
    return TrainingSet(source(images), algorithm, size=recipe.views.build().eval_size)
