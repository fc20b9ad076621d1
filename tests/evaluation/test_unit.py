"""Features that are not finite: no direction, no neighbours, no accuracy; the class of the largest NaN is class 0."""

import math

import pytest
import torch
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.evaluation.alarm import collapses
from ssl_ray.evaluation.classifier import ClassifierEvaluation
from ssl_ray.evaluation.diagnostics import embedding_std
from ssl_ray.evaluation.knn import knn_accuracy
from ssl_ray.evaluation.linear import SgdSettings, sgd_probe
from ssl_ray.evaluation.probe import linear_accuracy
from ssl_ray.evaluation.scores import judge
from ssl_ray.evaluation.sphere import uniformity
from ssl_ray.evaluation.unit import count_not_finite, finite_rows, unit
from ssl_ray.models import Classifier, ClsHead, ResNet
from ssl_ray.training.teller import describe_evaluation
from tests.evaluation.test_online import CLASSES, EVERY, OF, SIZE, Columns, Prototyped, evaluation, source
from tests.ranks import Ranks

# NaN, an infinity, and a finite row whose squares' sum float32 cannot hold.
BAD = {"nan": math.nan, "infinite": math.inf, "too long": 3e38}


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    return labels[:, None] + 0.3 * torch.randn(n, 6, generator=generator), labels


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_row_without_a_length_has_no_direction(value: float) -> None:
    z, _ = rows(8, 0)
    z[3] = value
    assert finite_rows(z).tolist() == [i != 3 for i in range(8)]
    assert count_not_finite(z, rows(5, 1)[0]) == (1, 13)
    assert unit(z).isnan().all(dim=1).tolist() == [i == 3 for i in range(8)]
    torch.testing.assert_close(unit(z)[4], z[4] / z[4].square().sum().sqrt())
    for measure in (embedding_std, uniformity):
        assert math.isfinite(measure(z[4:]))
        assert math.isnan(measure(z))


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("where", ["bank", "queries"])
def test_one_such_row_and_there_is_no_accuracy(where: str, value: float) -> None:
    (bank, bank_labels), (queries, labels) = rows(40, 0), rows(20, 1)
    assert knn_accuracy(bank, bank_labels, queries, labels, 5, 0.07) > 0.8
    assert linear_accuracy(bank, bank_labels, queries, labels) > 0.8
    {"bank": bank, "queries": queries}[where][7] = value
    assert math.isnan(knn_accuracy(bank, bank_labels, queries, labels, 5, 0.07))
    assert math.isnan(linear_accuracy(bank, bank_labels, queries, labels))


def on_one_of() -> list[float]:
    (bank, bank_labels), (queries, labels) = rows(40, 0), rows(20, 1)
    queries[-1] = math.nan  # of one rank alone
    mine = slice(distributed.rank(), None, distributed.world_size())
    given = (bank[mine], bank_labels[mine], queries[mine], labels[mine])
    return [
        knn_accuracy(*given, 5, 0.07),
        linear_accuracy(*given),
        *count_not_finite(bank[mine], queries[mine]),
    ]


def test_every_rank_hears_of_another_one_s(ranks: Ranks) -> None:
    for found in ranks(2, on_one_of):
        assert [math.isnan(value) for value in found] == [True, True, False, False]
        assert found[2:] == [1, 60]


def test_scores_that_are_nan_name_no_class() -> None:
    labels = torch.tensor([0, 0, 1])
    assert judge(torch.full((3, 2), math.nan), labels)["top1"] == 0
    scores = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [0.0, 1.0]])
    assert judge(scores, torch.tensor([0, -1, 1]))["top1"] == pytest.approx(2 / 3)
    assert judge(torch.tensor([[-math.inf, 0.5]]), torch.tensor([1]))["top1"] == 1


def test_a_learning_rate_that_diverges_is_not_the_best_one() -> None:
    x, y = rows(64, 0)
    x, y = (
        x * 10,
        y * (torch.arange(64) % 8 == 1),
    )  # nearly all of class 0, as one that has diverged would say
    _, reached = sgd_probe(x, y, 2, SgdSettings((1e38, 0.1), epochs=3))
    assert reached[1e38] == 0 < reached[0.1]


class Diverged(Columns):
    """Gives NaN for images whose first pixel is bright."""

    def embed(self, views: list[Tensor]) -> Tensor:
        found = super().embed(views)
        return found.masked_fill((views[0][:, 0, 0, 0] > 100)[:, None], math.nan)


def test_an_evaluation_says_how_many_and_no_accuracy() -> None:
    online, healthy = evaluation(**EVERY), evaluation(**EVERY).run(Columns())
    found = online.run(Diverged())
    bright = sum(
        int((images[:, 0, 0, 0] > 100).sum())
        for part in (online._bank, online._queries)
        for images, _ in part.batches()
    )
    assert 0 < bright < 260
    assert (found.pop("not_finite"), found.pop("images")) == (bright, 260)
    assert found.keys() == healthy.keys()
    assert all(map(math.isnan, found.values())), found
    assert all(map(math.isfinite, healthy.values()))
    again = {"step": 20, "epoch": 2.0} | online.run(Diverged())
    (alarm,) = collapses([{"step": 10} | healthy, again])
    assert (alarm.kind, alarm.since, alarm.healthy) == ("not finite", 20, 10)
    assert f"not finite since step 20 (not yet at step 10): {bright} of 260 images" in str(alarm)
    line = describe_evaluation(again)
    assert f"no accuracy, {bright} of 260 features are not finite" in line
    assert "%" not in line


def test_clusters_of_projections_that_are_not_finite_are_none() -> None:
    torch.manual_seed(0)
    algorithm = Prototyped()
    nn.init.constant_(algorithm.neck.projection[-1].bias, math.nan)
    found = evaluation(**EVERY).run(algorithm)
    assert all(math.isnan(found[name]) for name in OF["clusters"])
    assert math.isfinite(found["val/knn_top1"])
    assert "not_finite" not in found, "the features are"
    assert [a.kind for a in collapses([{"step": 5} | found])] == ["not finite"]


def test_it_is_said_of_an_untrained_network_too() -> None:
    (alarm,) = collapses([{"step": 0, "not_finite": 3.0, "images": 12.0}])
    assert "since step 0: 3 of 12 images" in str(alarm)


def test_a_classifier_whose_answers_are_nan_gets_none_right() -> None:
    torch.manual_seed(0)
    classifier = Classifier(ResNet(depth=18, width=4, stem="small"), ClsHead(32, 7))
    nn.init.constant_(classifier.head.fc_cls.bias, math.nan)
    found = ClassifierEvaluation(source(20, 0), source(24, 1), size=SIZE).run(classifier)
    assert (found["not_finite"], found["images"]) == (24, 24)
    assert all(math.isnan(found[f"val/finetune_{name}"]) for name in ("top1", "top5", "loss"))
    assert CLASSES < 7
