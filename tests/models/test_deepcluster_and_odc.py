"""DeepCluster and ODC: labels for all images, and the memory that ODC keeps of them."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_ray.errors import UserError
from ssl_ray.interop import mmselfsup
from ssl_ray.models import (
    ODC,
    AvgPool2dNeck,
    ClsHead,
    DeepCluster,
    ODCMemory,
    ODCNeck,
    Progress,
    ResNet,
    ResNetSobel,
    Views,
)

IMAGES, CLUSTERS = 48, 4


def images() -> tuple[Tensor, Tensor]:
    """Four kinds of image, far apart, and their kind."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(CLUSTERS).repeat(IMAGES // CLUSTERS)
    patterns = 3 * torch.randn(CLUSTERS, 3, 16, 16, generator=generator)
    return patterns[kinds] + 0.05 * torch.randn(IMAGES, 3, 16, 16, generator=generator), kinds


def extract_for(model: torch.nn.Module) -> Callable[[Callable[[Views], Tensor]], tuple[Tensor, Tensor]]:
    """As in training, but that images come in another order than the data set's."""

    def extract(function: Callable[[Views], Tensor]) -> tuple[Tensor, Tensor]:
        index = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(9))
        modes = {m: m.training for m in model.modules()}
        model.eval()
        with torch.no_grad():
            results = torch.cat([function([images()[0][rows]]) for rows in index.split(16)])
        for module, mode in modes.items():
            module.training = mode
        return index, results

    return extract


def deepcluster(**arguments: object) -> DeepCluster:
    torch.manual_seed(0)
    backbone = ResNet(18, width=8, stem="small_s2")
    head = ClsHead(64, CLUSTERS)
    return DeepCluster(backbone, head, IMAGES, neck=AvgPool2dNeck(), pca_dim=8, **arguments)


def odc(**arguments: object) -> ODC:
    torch.manual_seed(0)
    backbone, neck = ResNet(18, width=8, stem="small_s2"), ODCNeck(64, 16, 8)
    torch.nn.init.normal_(neck.fc0.weight, std=0.3)
    torch.nn.init.normal_(neck.fc1.weight, std=0.3)
    memory = ODCMemory(IMAGES, 8, CLUSTERS, min_cluster=3)
    return ODC(backbone, neck, ClsHead(8, CLUSTERS), memory, **arguments)


def at(epoch: int) -> Progress:
    return Progress(10 * epoch, 100, epoch, 10)


def partition(labels: Tensor) -> Tensor:
    return labels[:, None] == labels


def test_labels_are_in_the_order_of_the_data_set():
    model = deepcluster()
    model.before_epoch(at(0), extract_for(model))
    assert torch.equal(partition(model.labels), partition(images()[1]))


@pytest.mark.parametrize("make", [deepcluster, odc])
def test_cluster_sizes_count_every_image_once(make):
    model = make()
    model.before_epoch(at(0), extract_for(model))
    labels = model.labels if isinstance(model, DeepCluster) else model.memory.labels
    sizes = model.cluster_sizes()
    assert len(sizes) == model.head.num_classes
    assert sizes.tolist() == [int((labels == k).sum()) for k in range(len(sizes))]


def test_a_clustering_starts_the_classifier_anew_and_says_so():
    model = deepcluster()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    void = model.before_epoch(at(0), extract_for(model))
    before = model.head.fc_cls.weight.clone()
    model(list(images()[:1]), {"index": torch.arange(IMAGES)}, mode="loss").loss.backward()
    optimizer.step()
    assert {id(p) for p in void} == {id(p) for p in model.head.parameters()}
    assert all(p in optimizer.state for p in void), "the same tensors, which the optimiser knows"
    again = model.before_epoch(at(1), extract_for(model))
    assert len(again) == 2
    assert not torch.equal(model.head.fc_cls.weight, before)
    assert model.head.fc_cls.bias.abs().max() == 0


def test_between_clusterings_nothing_changes():
    model = deepcluster(interval=2)
    model.before_epoch(at(0), extract_for(model))
    before = copy.deepcopy(model.state_dict())
    assert not model.before_epoch(at(1), extract_for(model))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_loss_is_plain_cross_entropy_for_equal_clusters():
    model = deepcluster()
    model.before_epoch(at(0), extract_for(model))
    assert model.loss_weight.tolist() == pytest.approx([1] * CLUSTERS)
    index = torch.tensor([5, 3, 17, 40])
    views = [images()[0][index]]
    model.eval()
    output = model(views, {"index": index}, mode="loss")
    logits = model.head.logits(model.neck(model.backbone(views[0])))
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, model.labels[index]))
    prediction = model(views, mode="predict")
    torch.testing.assert_close(prediction.probability, logits.softmax(1))
    assert torch.equal(prediction.label, logits.argmax(1))


def test_rare_clusters_weigh_more():
    model = deepcluster()
    extract = extract_for(model)

    def lopsided(function: Callable[[Views], Tensor]) -> tuple[Tensor, Tensor]:
        index, results = extract(function)
        kinds = images()[1][index]
        # 45 images look like one another, three like something else.
        common = results[kinds == 0][:1] + 0.01 * torch.randn(
            IMAGES, 64, generator=torch.Generator().manual_seed(1)
        )
        rare = index < 3
        common[rare] = results[kinds == 1][:1]
        return index, common

    model.before_epoch(at(0), lopsided)
    sizes = torch.bincount(model.labels, minlength=CLUSTERS)
    parts = model.loss_weight * sizes
    assert parts[sizes > 0].tolist() == pytest.approx(
        [IMAGES / int((sizes > 0).sum())] * int((sizes > 0).sum())
    )


def test_without_a_neck_the_head_pools():
    model = DeepCluster(ResNet(18, width=8), ClsHead(64, 3, with_avg_pool=True), 6)
    output = model([torch.randn(2, 3, 32, 32)], {"index": torch.tensor([4, 1])}, mode="loss")
    assert output.loss.item() == pytest.approx(torch.tensor(3.0).log().item(), abs=0.1)


def test_more_clusters_than_images_are_refused():
    with pytest.raises(UserError, match=r"head.num_classes 10 clusters of 9 images"):
        DeepCluster(ResNet(18, width=8), ClsHead(64, 10), 9)
    with pytest.raises(UserError, match="num_clusters 10 clusters of 9 images"):
        ODCMemory(9, 8, 10)


def test_sobel_sees_edges_and_no_colours():
    backbone = ResNetSobel(18, width=8)
    left, right = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    left[..., 4:] = 3.0
    edges = backbone.sobel(left)
    assert edges.shape == (1, 2, 8, 8)
    assert edges[0, 0, 4, 3:5].tolist() == [-12, -12], "a step of 3, seen by four weights"
    assert edges[0, 1, 1:-1].abs().max() == 0
    right[:, 0, :, 4:] = 9.0  # all of it in red
    torch.testing.assert_close(backbone.sobel(right), edges)
    assert backbone(torch.randn(2, 3, 32, 32))[0].shape == (2, 64, 1, 1)


def test_checkpoints_from_before_the_filters_were_kept_have_sobels():
    backbone = ResNetSobel(18, width=8)
    state = backbone.state_dict()
    assert {name for name in state if name.startswith("sobel.")} == {
        f"sobel.{part}{bias}" for part in ("gray", "filters") for bias in ("", "_bias")
    }
    old = {name: value for name, value in state.items() if not name.startswith("sobel.")}
    other = ResNetSobel(18, width=8)
    torch.nn.init.normal_(other.sobel.filters)
    other.load_state_dict(old)
    torch.testing.assert_close(other.state_dict(), state, rtol=0, atol=0)
    del state["sobel.gray"]
    with pytest.raises(RuntimeError, match=r"Missing key.*sobel\.gray"):  # some of them are no old checkpoint
        other.load_state_dict(state)


def test_nothing_of_sobel_is_trained():
    model = DeepCluster(ResNetSobel(18, width=8), ClsHead(64, 5), IMAGES)
    trained = {id(p) for group in model.param_groups() for p in group.params}
    assert trained.isdisjoint(id(buffer) for buffer in model.backbone.sobel.buffers())
    assert not list(model.backbone.sobel.parameters())


def test_odc_starts_with_k_means_of_the_necks_features():
    model = odc()
    model.before_epoch(at(0), extract_for(model))
    memory = model.memory
    torch.testing.assert_close(memory.features.norm(dim=1), torch.ones(IMAGES))
    assert torch.equal(partition(memory.labels), partition(images()[1])), "rows lie at their image's index"
    means = torch.stack([memory.features[memory.labels == k].mean(0) for k in range(CLUSTERS)])
    torch.testing.assert_close(memory.centroids, means)
    before = copy.deepcopy(model.state_dict())
    model.before_epoch(at(1), extract_for(model))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "only once"


def test_an_odc_step_moves_the_rows_of_the_batch_towards_the_new_features():
    model = odc(small_clusters_interval=100)
    model.before_epoch(at(0), extract_for(model))
    model.neck.dropout = 0.0
    index = torch.tensor([7, 30, 2, 21])
    views = [images()[0][index]]
    before = copy.deepcopy(model.memory)
    output = model(views, {"index": index}, mode="loss")
    assert all(torch.equal(v, getattr(before, k)) for k, v in model.memory.named_buffers())
    new = F.normalize(copy.deepcopy(model).neck(model.backbone(views[0])), dim=1)
    expected = F.normalize(0.5 * before.features[index] + 0.5 * new, dim=1)
    model.after_step(output.state, Progress(0, 10, 0, 1))
    torch.testing.assert_close(model.memory.features[index], expected.detach())
    assert torch.equal(model.memory.labels[index], (expected @ before.centroids.T).argmax(1))
    others = torch.ones(IMAGES, dtype=torch.bool)
    others[index] = False
    assert torch.equal(model.memory.features[others], before.features[others])
    changed = (model.memory.labels[index] != before.labels[index]).float().mean()
    assert output.metrics["change_ratio"] == changed


def test_centroids_follow_every_few_steps():
    model = odc(centroids_interval=3, small_clusters_interval=100)
    model.before_epoch(at(0), extract_for(model))
    index = torch.arange(16)
    moved = []
    for step in range(6):
        before = model.memory.centroids.clone()
        output = model([images()[0][index]], {"index": index}, mode="loss")
        model.after_step(output.state, Progress(step, 6, 0, 1))
        moved.append(not torch.equal(model.memory.centroids, before))
    assert moved == [False, False, True, False, False, True]


def test_dropout_scales_the_hidden_layer_in_training_only():
    neck = ODCNeck(6, 10, 3, with_avg_pool=False).eval()
    torch.nn.init.normal_(neck.fc0.weight)
    torch.nn.init.normal_(neck.fc1.weight)
    x, scale = torch.randn(4, 6), 2.0 * torch.randint(0, 2, (4, 10))
    hidden = F.relu(neck.bn0(neck.fc0(x)))
    torch.testing.assert_close(neck((x,), scale), F.relu(neck.fc1(hidden * scale)))
    torch.testing.assert_close(neck((x,)), F.relu(neck.fc1(hidden)))
    model = odc()
    model.before_epoch(at(0), extract_for(model))
    view, samples = [images()[0][:8]], {"index": torch.arange(8)}
    zero = samples | {"dropout_scale": torch.zeros(8, 16)}
    assert model(view, zero, mode="loss").loss != model(view, samples, mode="loss").loss
    model.eval()
    assert model(view, zero, mode="loss").loss == model(view, samples, mode="loss").loss


def clustered_memory() -> ODCMemory:
    """Two clear groups in label 0, one of them with a stray label 2; label 1 has its own; label 3 is empty."""
    memory = ODCMemory(20, 2, 4, min_cluster=3)
    angles = torch.tensor([0.0] * 8 + [0.8] * 5 + [1.57] * 6 + [0.01]) + 0.001 * torch.arange(20)
    labels = torch.tensor([0] * 13 + [1] * 6 + [2])
    memory.start(torch.arange(20), torch.stack([angles.cos(), angles.sin()], 1), labels)
    return memory


def test_small_clusters_are_dissolved_and_the_largest_is_split():
    memory = clustered_memory()
    memory.dissolve_small_clusters()
    assert memory.labels[13:19].tolist() == [1] * 6, "a large cluster keeps its images"
    assert memory.sizes.min() > 0
    groups = partition(memory.labels)
    assert not groups[:8, 8:13].any(), "the two groups in label 0 are apart"
    for label in range(4):
        mean = memory.features[memory.labels == label].mean(0)
        torch.testing.assert_close(memory.centroids[label], mean)


def test_a_cluster_of_equal_rows_is_split_in_the_middle():
    memory = ODCMemory(12, 3, 2, min_cluster=2)
    memory.start(torch.arange(12), torch.ones(12, 3), torch.zeros(12, dtype=torch.long))
    memory.dissolve_small_clusters()
    assert memory.sizes.min() > 0


def test_more_clusters_than_can_be_filled_are_left_alone():
    memory = ODCMemory(8, 2, 4, min_cluster=5)
    memory.start(torch.arange(8), torch.randn(8, 2), torch.arange(8) % 4)
    memory.dissolve_small_clusters()
    assert memory.labels.tolist() == [0, 1, 2, 3] * 2


def test_an_empty_clusters_centroid_stays():
    memory = clustered_memory()
    memory.centroids[3] = torch.tensor([5.0, 6.0])
    memory.update_centroids()
    assert memory.centroids[3].tolist() == [5, 6]


def test_a_memory_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"memory of 4 clusters, 8-d, does not fit head.num_classes 5"):
        ODC(ResNet(18, width=8), ODCNeck(64, 16, 8), ClsHead(8, 5), ODCMemory(IMAGES, 8, 4))


def test_mmselfsups_sobel_backbone_goes_both_ways(caplog):
    config = {
        "type": "DeepCluster",
        "backbone": {
            "type": "ResNetSobel",
            "depth": 18,
            "in_channels": 2,
            "base_channels": 8,
            "stem_channels": 8,
        },
        "neck": {"type": "AvgPool2dNeck"},
        "head": {"type": "ClsHead", "with_avg_pool": False, "in_channels": 64, "num_classes": 5},
    }
    model = mmselfsup.from_config(config)
    theirs = mmselfsup.to_state_dict(model)
    sobel = {k: v for k, v in theirs.items() if "sobel" in k}
    assert set(sobel) == {f"backbone.sobel_layer.sobel.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")}
    images = torch.randn(2, 3, 32, 32)
    prefix = "backbone.sobel_layer.sobel"
    gray = F.conv2d(images, sobel[f"{prefix}.0.weight"], sobel[f"{prefix}.0.bias"])
    expected = F.conv2d(gray, sobel[f"{prefix}.1.weight"], sobel[f"{prefix}.1.bias"], padding=1)
    torch.testing.assert_close(model.backbone.sobel(images), expected)
    other = mmselfsup.from_config(config)
    mmselfsup.load_state_dict(other, theirs)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert torch.allclose(model.loss_weight, torch.full((5,), 0.2))
    assert not caplog.records
    # A run of theirs that initialises its weights draws these, too, and keeps them: they are what the stem was fed.
    drawn = theirs | {name: torch.randn_like(value) for name, value in sobel.items()}
    mmselfsup.load_state_dict(other, drawn)
    assert "the filters are other numbers than Sobel's; they are used as they are" in caplog.text
    gray = F.conv2d(images, drawn[f"{prefix}.0.weight"], drawn[f"{prefix}.0.bias"])
    expected = F.conv2d(gray, drawn[f"{prefix}.1.weight"], drawn[f"{prefix}.1.bias"], padding=1)
    torch.testing.assert_close(other.backbone.sobel(images), expected)
    torch.testing.assert_close(mmselfsup.to_state_dict(other), drawn, rtol=0, atol=0)
