from dataclasses import replace
from typing import Any

import pytest

from ssl_ray.data.source import DatasetInfo
from ssl_ray.errors import UserError
from ssl_ray.experiments import load
from ssl_ray.models import Classifier, ClsHead
from ssl_ray.recipe import Recipe, override, overrides
from ssl_ray.resolve import resolve
from ssl_ray.spec import Spec
from tests.test_recipe import RECIPE

INFO = DatasetInfo(name="tiny", num_samples=1000, image_size=(28, 28), num_classes=10, digest="0")
LARGE = DatasetInfo(name="large", num_samples=1_281_167, image_size=(375, 500), num_classes=1000, digest="1")

MOCO: Recipe = load("moco").SMALL
MAE: Recipe = load("mae").SMALL


class Clusters:
    def __init__(self, num_clusters: int, num_samples: int | None = None, queue_size: int = 0) -> None:
        pass


def test_lr_follows_the_linear_rule() -> None:
    resolved = resolve(override(RECIPE, "training.global_batch_size", 512), INFO)
    assert resolved.recipe.optimization.lr == pytest.approx(0.2)
    assert resolved.origins["optimization.lr"] == "base_lr 0.1 x 512 / 256"
    given = resolve(override(RECIPE, "optimization.lr", 0.7), INFO)
    assert given.recipe.optimization.lr == 0.7
    assert "optimization.lr" not in given.origins


@pytest.mark.parametrize(
    ("queue", "batch", "images", "expected"),
    [(2048, 256, 9000, 2048), (2048, 256, 1000, 768), (2048, 300, 9000, 1800), (100, 256, 9000, 256)],
)
def test_queue_fits_data_and_batch(queue: int, batch: int, images: int, expected: int) -> None:
    info = DatasetInfo("x", images, (28, 28), None, "0")
    recipe = overrides(MOCO, {"algorithm.queue_size": queue, "training.global_batch_size": batch})
    resolved = resolve(recipe, info)
    assert resolved.recipe.algorithm.kwargs["queue_size"] == expected
    assert ("algorithm.queue_size" in resolved.origins) == (expected != queue)
    assert expected % batch == 0


def test_bank_rows_clusters_and_absent_queues() -> None:
    recipe = override(RECIPE, "algorithm.memory", Spec(Clusters, num_clusters=10))
    resolved = resolve(recipe, INFO)
    assert resolved.recipe.algorithm.kwargs["memory"] == Spec(
        Clusters, num_clusters=10, num_samples=1000, queue_size=0
    )
    assert resolved.origins["algorithm.memory.num_samples"] == "number of images"
    with pytest.raises(UserError, match=r"algorithm\.memory\.num_clusters 1001 is more than the 1000 images"):
        resolve(override(recipe, "algorithm.memory.num_clusters", 1001), INFO)


def test_sizes_of_a_masked_autoencoder_follow_views_and_backbone() -> None:
    resolved = resolve(overrides(MAE, {"views.size": 32, "algorithm.backbone.patch_size": 8}), INFO)
    parts = resolved.recipe.algorithm.kwargs
    assert parts["backbone"].kwargs["img_size"] == 32
    assert parts["neck"].kwargs["num_patches"] == 16
    patches = [parts[p].kwargs["patch_size"] for p in ("backbone", "neck", "head")]
    assert [*patches, resolved.recipe.views.kwargs["patch_size"]] == [8, 8, 8, 8]
    assert resolved.origins["algorithm.neck.num_patches"] == "(32 / 8) squared"
    assert "enlarged" in resolved.origins["views.size"]
    resolved.recipe.algorithm.build()


@pytest.mark.parametrize("name", ["moco", "simclr", "mae"])
@pytest.mark.parametrize("info", [INFO, LARGE])
def test_resolving_is_complete_and_settles(name: str, info: DatasetInfo) -> None:
    scale = "SMALL" if info is INFO else "PAPER"
    batch = {} if info is LARGE else {"training.global_batch_size": 64}
    first = resolve(overrides(getattr(load(name), scale), batch), info)
    second = resolve(Recipe.from_json(first.recipe.to_json()), info)
    assert second.recipe == first.recipe
    assert second.origins == {}
    assert first.recipe.algorithm.kwargs["backbone"].defaults() == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training.global_batch_size": 1001},
            r"global_batch_size 1001 is more than the 1000 images of tiny",
        ),
        (
            {"training.accumulate": 3},
            r"training\.accumulate 3 does not divide training\.global_batch_size 64",
        ),
        ({"optimization.warmup_epochs": 11}, r"warmup_epochs 11 is longer than the run, training\.epochs 10"),
        ({"optimization.milestones": []}, r"schedule 'step' needs milestones"),
        ({"optimization.schedule": "cosine"}, r"milestones \[3, 6\] with optimization\.schedule 'cosine'"),
        ({"evaluation.k": 1001}, r"evaluation\.k 1001 is more than the 1000 images"),
        (
            {"evaluation.on_collapse": "stop", "evaluation.every_epochs": None},
            "without evaluations no collapse",
        ),
        (
            {
                "evaluation.on_collapse": "stop",
                "evaluation.std": False,
                "evaluation.top_direction": False,
                "evaluation.clusters": False,
            },
            "nothing can raise the alarm",
        ),
        ({"evaluation.max_samples": 10}, r"evaluation\.k 20 is more than the 10 images"),
        ({"algorithm.memory": Spec(Clusters)}, r"algorithm\.memory: Clusters needs num_clusters"),
    ],
)
def test_refuses_what_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(overrides(RECIPE, changes), INFO)


def test_refuses_a_patch_that_does_not_divide_the_view() -> None:
    recipe = overrides(MAE, {"algorithm.backbone.patch_size": 5})
    with pytest.raises(UserError, match=r"patch_size 5 does not divide views\.size 28"):
        resolve(recipe, INFO)


@pytest.mark.parametrize(
    ("changes", "info", "held_out"),
    [
        ({"evaluation.every_epochs": None}, INFO, True),
        ({"evaluation.knn": False}, INFO, True),
        ({}, replace(INFO, num_classes=None), True),
        ({}, INFO, False),
    ],
    ids=["no evaluation", "no kNN", "no labels", "nothing held out"],
)
def test_k_matters_only_where_there_is_knn(
    changes: dict[str, Any], info: DatasetInfo, held_out: bool
) -> None:
    few = {"evaluation.k": 1001, **changes}
    assert resolve(overrides(RECIPE, few), info, held_out=held_out).recipe.evaluation.k == 1001


def test_k_does_not_matter_to_a_fine_tuning() -> None:
    recipe = load("moco").SMALL
    backbone = recipe.algorithm.kwargs["backbone"].replace(out_indices=(4,))
    tuned = replace(
        recipe,
        algorithm=Spec(Classifier, backbone=backbone, head=Spec(ClsHead, in_channels=128, num_classes=10)),
    )
    resolve(overrides(tuned, {"evaluation.k": 1001}), INFO)


def test_the_neck_takes_what_the_backbone_gives() -> None:
    from ssl_ray.experiments import load
    from ssl_ray.recipe import overrides

    info = DatasetInfo("fashion", 7000, (28, 28), 10, "0")
    resolved = resolve(overrides(load("moco").SMALL, {"algorithm.backbone.depth": 50}), info)
    assert resolved.recipe.algorithm.kwargs["neck"].kwargs["in_channels"] == 16 * 8 * 4
    assert resolved.origins["algorithm.neck.in_channels"] == "what the backbone gives"
    mae = resolve(overrides(load("mae").SMALL, {"algorithm.backbone.embed_dim": 48}), info).recipe
    assert mae.algorithm.kwargs["neck"].kwargs["embed_dim"] == 48
    assert mae.algorithm.kwargs["neck"].kwargs["in_channels"] == 3, "the image's, which the decoder predicts"
