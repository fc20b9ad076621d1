import pytest
import torch
from sklearn.metrics import recall_score, top_k_accuracy_score

from ssl_ray.evaluation.scores import Result, Tally, judge, over_draws


def test_scores_are_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(8, (300,), generator=generator) % 7  # class 0 has twice as many, 7 none
    scores = torch.randn(300, 8, generator=generator) + torch.nn.functional.one_hot(labels, 8)
    found = judge(scores, labels)
    y, s = labels.numpy(), scores.numpy()
    assert found["top1"] == pytest.approx(top_k_accuracy_score(y, s, k=1, labels=range(8)))
    assert found["top5"] == pytest.approx(top_k_accuracy_score(y, s, k=5, labels=range(8)))
    assert found["class_mean"] == pytest.approx(
        recall_score(y, s.argmax(1), labels=range(7), average="macro")
    )
    assert len({round(value, 6) for value in found.values()}) == 3

    tally = Tally(8)
    for rows in torch.arange(300).split(77):
        tally.add(scores[rows], labels[rows])
    assert tally.scores() == found


def test_five_classes_have_no_top5() -> None:
    assert set(judge(torch.eye(5), torch.arange(5))) == {"top1", "class_mean"}


def test_unknown_classes_are_wrong() -> None:
    assert judge(torch.eye(3), torch.tensor([0, 1, 9]))["top1"] == pytest.approx(2 / 3)


def test_names_of_metrics() -> None:
    result = Result("knn", "k = 20, T = 0.07", "k20_T0.07", {"top1": 0.5}, {"top1": 0.1})
    assert result.metrics() == {"eval/knn_top1_k20_T0.07": 0.5, "eval/knn_top1_k20_T0.07_std": 0.1}


def test_spread_over_draws() -> None:
    means, stds = over_draws([{"top1": 0.2}, {"top1": 0.4}])
    assert means == {"top1": pytest.approx(0.3)}
    assert stds == {"top1": pytest.approx(0.02**0.5)}
    assert over_draws([{"top1": 0.2}]) == ({"top1": 0.2}, {})
