from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_ray.data.pipeline import ViewPipeline, make_batch
from ssl_ray.data.source import DatasetInfo
from ssl_ray.data.views import moco_v2_views
from ssl_ray.errors import UserError
from ssl_ray.evaluation import images
from ssl_ray.evaluation.alarm import collapses
from ssl_ray.evaluation.clusters import cluster_metrics
from ssl_ray.evaluation.knn import knn_accuracy
from ssl_ray.evaluation.lidar import lidar
from ssl_ray.evaluation.online import OnlineEvaluation
from ssl_ray.evaluation.sphere import alignment
from ssl_ray.models.algorithms.swav import SwAV
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.models.base import BaseModel
from ssl_ray.models.heads import SwAVHead
from ssl_ray.models.necks import LinearNeck, SwAVNeck
from ssl_ray.recipe import Evaluation
from tests.ranks import Ranks

SIZE = 12
CLASSES = 4


@dataclass
class Memory:
    """A source of PNG bytes in memory."""

    blobs: list[bytes]
    classes: np.ndarray | None
    side: int = SIZE

    @property
    def info(self) -> DatasetInfo:
        count = None if self.classes is None else CLASSES
        return DatasetInfo("memory", len(self.blobs), (self.side, self.side), count, "0")

    def read(self, indices: np.ndarray) -> list[bytes]:
        return [self.blobs[i] for i in indices]

    def labels(self) -> np.ndarray | None:
        return self.classes

    def path(self, index: int) -> str:
        return f"memory/{index}.png"


def stripes(n: int, seed: int, side: int = SIZE, sort: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images whose class is the position of a bright stripe."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(CLASSES, size=n)
    if sort:
        labels = np.sort(labels)
    images = generator.integers(0, 170, (n, side, side, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, label * side // CLASSES : (label + 1) * side // CLASSES] += 60
    return images, labels


def source(n: int, seed: int, labelled: bool = True, side: int = SIZE, sort: bool = False) -> Memory:
    images, labels = stripes(n, seed, side, sort)
    return encoded(images, labels if labelled else None, side)


def encoded(images: np.ndarray, labels: np.ndarray | None, side: int = SIZE) -> Memory:
    blobs = [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in images]
    return Memory(blobs, labels, side)


class Columns(BaseModel):
    """Embeds an image as its mean over rows: exactly known features."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def embed(self, views: list[Tensor]) -> Tensor:
        return self.backbone(views[0].float() / 255).mean(2).flatten(1)


class Projected(BaseModel):
    """A ResNet with batch norm and a projector, as in MoCo v1."""

    def __init__(self) -> None:
        super().__init__(ResNet(depth=18, width=4, stem="small"), LinearNeck(32, 16))


class Prototyped(SwAV):
    """A ResNet with a projector and prototypes."""

    def __init__(self) -> None:
        super().__init__(ResNet(depth=18, width=4, stem="small"), SwAVNeck(32, 16, 8), SwAVHead(8, 6))


EVERY: dict[str, Any] = {
    "monitors": (
        *("std", "rankme", "top_direction", "alpha_req", "uniformity", "alignment", "lidar", "clusters"),
        *("knn", "linear_probe"),
    ),
    "views": moco_v2_views(SIZE, min_scale=0.5),
    "view_images": 40,
    "lidar_views": 4,
}
OF = {
    "std": {"embedding/std", "projection/std"},
    "rankme": {"embedding/rankme", "projection/rankme"},
    "top_direction": {"embedding/top_direction", "projection/top_direction"},
    "alpha_req": {"embedding/alpha_req"},
    "uniformity": {"embedding/uniformity"},
    "alignment": {"embedding/alignment"},
    "lidar": {"embedding/lidar"},
    "clusters": {"clusters/occupancy", "clusters/perplexity", "clusters/largest"},
    "knn": {"val/knn_top1"},
    "linear_probe": {"val/linear_top1"},
}


def evaluation(train: Memory | None = None, val: Memory | None = None, **options: Any) -> OnlineEvaluation:
    return OnlineEvaluation(
        train or source(200, 0), val or source(60, 1), size=SIZE, k=5, batch_size=64, **options
    )


def test_equals_knn_of_the_features_themselves() -> None:
    (bank, bank_labels), (queries, labels) = stripes(200, 0), stripes(60, 1)
    features = [
        torch.from_numpy(x / 255).permute(0, 3, 1, 2).float().mean(2).flatten(1) for x in (bank, queries)
    ]
    expected = knn_accuracy(
        features[0], torch.from_numpy(bank_labels), features[1], torch.from_numpy(labels), 5, 0.07
    )
    metrics = evaluation().run(Columns())
    assert metrics["val/knn_top1"] == pytest.approx(expected)
    assert 0.5 < expected <= 1
    assert set(metrics) == {"val/knn_top1", "embedding/std", "embedding/rankme"}


def test_every_monitor_has_a_flag_of_its_own() -> None:
    algorithm = Prototyped()
    together = evaluation(**EVERY).run(algorithm)
    assert set(together) == set().union(*OF.values())
    for name, metrics in OF.items():
        alone = evaluation(**EVERY | {"monitors": (name,)}).run(algorithm)
        assert set(alone) == metrics
        assert alone == pytest.approx({key: together[key] for key in metrics})
    assert Evaluation(alignment=True, lidar=True).monitors == OF.keys()


def test_alignment_and_lidar_see_the_views_that_the_pipeline_draws() -> None:
    val = source(30, 1)
    pipeline: ViewPipeline = EVERY["views"]
    # The four views of an image that a pipeline of four such views makes.
    columns, _ = make_batch(ViewPipeline(pipeline.views[:1] * 4), val.blobs, np.arange(30), 0, 0)
    z = torch.stack(
        [Columns().embed([torch.from_numpy(columns[f"view_{i}"]).permute(0, 3, 1, 2)]) for i in range(4)], 1
    )
    metrics = evaluation(val=val, **EVERY).run(Columns())
    assert metrics["embedding/lidar"] == pytest.approx(lidar(z), rel=1e-6)
    assert metrics["embedding/alignment"] == pytest.approx(alignment(z[:, :2]), rel=1e-6)
    assert metrics["embedding/alignment"] > 0.001


def test_an_algorithm_that_remembers_clusters_is_asked_for_them() -> None:
    class Remembering(Columns):
        def cluster_sizes(self) -> Tensor:
            return torch.tensor([3, 0, 0, 9])

    online_evaluation = evaluation(monitors=("clusters",))
    metrics = online_evaluation.run(Remembering())
    assert metrics == cluster_metrics(torch.tensor([3, 0, 0, 9]))
    assert online_evaluation.run(Remembering(), trained=False) == {}, "no image has a cluster yet"


@pytest.mark.parametrize("gray", ["none", "both", "queries"])
def test_raw_pixels(gray: str) -> None:
    """Of all three channels, also where one would do."""
    (bank, bank_labels), (queries, labels) = stripes(200, 0), stripes(60, 1)
    if gray == "both":
        bank[:] = bank[..., :1]
    if gray != "none":
        queries[:] = queries[..., :1]
    expected = knn_accuracy(
        torch.from_numpy(bank).reshape(200, -1) / 255,
        torch.from_numpy(bank_labels),
        torch.from_numpy(queries).reshape(60, -1) / 255,
        torch.from_numpy(labels),
        5,
        0.07,
    )
    given = evaluation(train=encoded(bank, bank_labels), val=encoded(queries, labels))
    assert given.raw_pixel_knn() == pytest.approx(expected)


def test_images_of_the_size_are_not_touched() -> None:
    (batch, _), *_ = evaluation()._queries.batches()
    assert batch.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(batch.permute(0, 2, 3, 1).numpy(), stripes(60, 1)[0])


def test_larger_images_are_resized() -> None:
    (batch, _), *_ = evaluation(val=source(10, 1, side=40))._queries.batches()
    assert batch.shape == (10, 3, SIZE, SIZE)


def test_leaves_the_run_as_it_was() -> None:
    algorithm = Projected().train()
    algorithm.backbone.layer1.eval()  # frozen on purpose
    modes = [module.training for module in algorithm.modules()]
    state = {name: value.clone() for name, value in algorithm.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    metrics = evaluation().run(algorithm)
    assert torch.equal(torch.rand(2), expected)
    assert [module.training for module in algorithm.modules()] == modes
    for name, value in algorithm.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not any(parameter.grad is not None for parameter in algorithm.parameters())
    assert not algorithm.backbone._forward_hooks
    projection = {"projection/std", "projection/rankme"}
    assert set(metrics) == {"val/knn_top1", "embedding/std", "embedding/rankme"} | projection


def test_restores_the_mode_after_an_error() -> None:
    algorithm = Columns().train()
    with pytest.raises(UserError, match="5 neighbours of 3"):
        evaluation(train=source(3, 0)).run(algorithm)
    assert algorithm.training


def test_random_draws_of_embed_do_not_reach_the_run() -> None:
    class Noisy(Columns):
        def embed(self, views: list[Tensor]) -> Tensor:
            return super().embed(views) + 0.01 * torch.rand(1)

    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    evaluation().run(Noisy())
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("val", [source(40, 1, labelled=False), None])
def test_without_labels_only_the_diagnostics(val: Memory | None) -> None:
    online_evaluation = OnlineEvaluation(source(50, 0, labelled=False), val, size=SIZE)
    assert set(online_evaluation.run(Columns())) == {"embedding/std", "embedding/rankme"}
    assert online_evaluation.raw_pixel_knn() is None


def test_broken_images_are_left_out_and_named() -> None:
    train = source(200, 0)
    train.blobs[7] = b"not an image"
    train.blobs[150] = b""
    online_evaluation = evaluation(train=train)
    accuracy = online_evaluation.run(Columns())["val/knn_top1"]
    assert set(online_evaluation.broken) == {"memory/7.png", "memory/150.png"}
    assert online_evaluation.run(Columns())["val/knn_top1"] == accuracy
    whole = np.delete(np.arange(200), [7, 150])
    rest = Memory([train.blobs[i] for i in whole], train.labels()[whole])
    assert evaluation(train=rest).run(Columns())["val/knn_top1"] == accuracy


def test_a_sample_of_a_sorted_folder_holds_every_class() -> None:
    sampled = OnlineEvaluation(source(400, 0, sort=True), source(50, 1), size=SIZE, max_samples=40)
    index = torch.cat([index for _, index in sampled._bank.batches()])
    labels = sampled._bank.source.labels()[index]
    assert len(labels) == 40
    assert set(labels.tolist()) == set(range(CLASSES))


def test_images_that_do_not_fit_are_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = evaluation().run(Columns())
    monkeypatch.setattr(images, "_KEEP_BYTES", 0)
    again = evaluation()
    assert again.run(Columns()) == kept
    assert again._queries._kept is None
    assert again.run(Columns()) == kept


def test_alarms_when_the_projection_collapses() -> None:
    algorithm, online_evaluation = Projected(), evaluation()
    healthy = {"step": 10} | online_evaluation.run(algorithm)
    assert collapses([healthy]) == []
    nn.init.constant_(
        algorithm.neck.fc.bias, 1e4
    )  # one point, whatever the image; the features are as before
    (alarm,) = collapses([healthy, {"step": 20} | online_evaluation.run(algorithm)])
    assert (alarm.kind, alarm.since, alarm.healthy) == ("complete", 20, 10)
    assert "projection/std" in str(alarm)


def test_projects_where_embed_goes_around_the_backbone() -> None:
    class Around(Projected):
        def embed(self, views: list[Tensor]) -> Tensor:
            return self.backbone.conv1(self.data_preprocessor(views)[0]).mean((2, 3))

        def extract_feat(self, views: list[Tensor]) -> tuple[Tensor, ...]:
            return self.backbone(views[0])

    torch.manual_seed(0)
    usual = evaluation().run(Projected())
    torch.manual_seed(0)
    assert evaluation().run(Around())["projection/std"] == pytest.approx(usual["projection/std"])


def test_bfloat16_autocast_is_close() -> None:
    torch.manual_seed(0)
    algorithm = Projected()
    full = evaluation().run(algorithm)
    half = evaluation(autocast=torch.bfloat16).run(algorithm)
    assert half["embedding/std"] == pytest.approx(full["embedding/std"], rel=0.05)
    assert half["embedding/std"] != full["embedding/std"]


def run_on() -> dict[str, float]:
    torch.manual_seed(0)
    train = source(201, 0)
    train.blobs[5] = b"broken"  # ranks hold unequal numbers
    val = source(61, 1)
    val.blobs[3] = b"broken"
    return evaluation(train, val, **EVERY).run(Prototyped())


def test_two_processes_equal_one(ranks: Ranks) -> None:
    alone = run_on()
    for metrics in ranks(2, run_on):
        assert metrics == pytest.approx(alone, rel=1e-4)
        for exact in ("val/knn_top1", "val/linear_top1", "clusters/occupancy", "clusters/largest"):
            assert metrics[exact] == alone[exact]


def test_more_ranks_than_images(ranks: Ranks) -> None:
    for metrics in ranks(3, few_images):
        assert metrics == pytest.approx(few_images(), rel=1e-4)


def few_images() -> dict[str, float]:
    torch.manual_seed(0)
    return evaluation(val=source(2, 1), **EVERY).run(Prototyped())
