import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC
from torch import Tensor

from ssl_ray.evaluation.svm import COSTS, mean_average_precision, svm_scores

CLASSES = 4


def blobs(seed: int, n: int) -> tuple[Tensor, Tensor]:
    centres = torch.randn(CLASSES, 24, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    return centres[labels] + 1.2 * torch.randn(n, 24, generator=generator), labels


def test_equals_scikit_learns_search() -> None:
    (x, y), (queries, _) = blobs(0, 48), blobs(1, 80)
    scores, cost = svm_scores(x, y, queries, CLASSES, seed=2)
    unit, unit_queries = (F.normalize(t, dim=1).double().numpy() for t in (x, queries))
    searches = []
    for label in range(CLASSES):
        search = GridSearchCV(
            LinearSVC(class_weight={1: 2, -1: 1}, dual=True, tol=1e-8, max_iter=100_000, random_state=2),
            {"C": list(COSTS)},
            scoring="average_precision",
            cv=StratifiedKFold(3, shuffle=True, random_state=2),
        )
        searches.append(search.fit(unit, np.where(y == label, 1, -1)))
    reached = np.mean([search.cv_results_["mean_test_score"] for search in searches], axis=0)
    assert cost == COSTS[int(reached.argmax())]
    for label, search in enumerate(searches):
        best = search.estimator.set_params(C=cost).fit(unit, np.where(y == label, 1, -1))
        np.testing.assert_allclose(scores[:, label], best.decision_function(unit_queries), atol=1e-6)


def test_the_same_rows_give_the_same_scores_whatever_the_threads_do() -> None:
    (x, y), (queries, _) = blobs(0, 200), blobs(1, 50)
    first, cost = svm_scores(x, y, queries, CLASSES)
    for _ in range(3):
        again, cost_again = svm_scores(x, y, queries, CLASSES)
        assert torch.equal(again, first)
        assert cost_again == cost


def test_more_rows_name_the_class_better() -> None:
    queries, labels = blobs(1, 400)
    right = []
    for n in (1, 2, 8):
        draws = [blobs(seed, n * CLASSES) for seed in range(10, 16)]
        found = [svm_scores(x, y, queries, CLASSES)[0].argmax(dim=1) == labels for x, y in draws]
        right.append(float(torch.stack(found).float().mean()))
    assert right == sorted(right)


def test_one_row_of_a_class_is_enough() -> None:
    (x, y), (queries, labels) = blobs(0, CLASSES), blobs(1, 200)
    scores, cost = svm_scores(x, y, queries, CLASSES)
    assert cost == 1.0
    assert (scores.argmax(dim=1) == labels).float().mean() > 0.4  # chance is 0.25


def test_a_class_without_rows_never_wins() -> None:
    (x, y), (queries, _) = blobs(0, 40), blobs(1, 20)
    scores, _ = svm_scores(x[y != 2], y[y != 2], queries, CLASSES)
    assert scores[:, 2].isneginf().all()
    assert 2 not in scores.argmax(dim=1)


def test_mean_average_precision() -> None:
    labels = torch.tensor([0, 0, 1, 1, 3])
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.mean([average_precision_score(labels == k, scores[:, k]) for k in (0, 1, 3)])
    assert mean_average_precision(scores, labels) == pytest.approx(expected)
