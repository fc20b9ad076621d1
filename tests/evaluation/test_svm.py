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


def test_equals_scikit_learns_search_for_each_class() -> None:
    (x, y), (queries, _) = blobs(0, 48), blobs(1, 80)
    scores, chosen = svm_scores(x, y, queries, CLASSES, seed=2)
    unit, unit_queries = (F.normalize(t, dim=1).double().numpy() for t in (x, queries))
    for label in range(CLASSES):
        search = GridSearchCV(
            LinearSVC(class_weight={1: 2, -1: 1}, dual=True, max_iter=2000, random_state=2),
            {"C": list(COSTS)},
            scoring="average_precision",
            cv=StratifiedKFold(3, shuffle=True, random_state=2),
        )
        search.fit(unit, np.where(y == label, 1, -1))
        assert chosen[label] == search.best_params_["C"]
        np.testing.assert_allclose(scores[:, label], search.decision_function(unit_queries), atol=1e-6)


def test_one_row_of_a_class_is_enough() -> None:
    (x, y), (queries, labels) = blobs(0, CLASSES), blobs(1, 200)
    scores, chosen = svm_scores(x, y, queries, CLASSES)
    assert chosen == [1.0] * CLASSES
    assert (scores.argmax(dim=1) == labels).float().mean() > 0.4  # chance is 0.25


def test_a_class_without_rows_never_wins() -> None:
    (x, y), (queries, _) = blobs(0, 40), blobs(1, 20)
    scores, chosen = svm_scores(x[y != 2], y[y != 2], queries, CLASSES)
    assert scores[:, 2].isneginf().all()
    assert np.isnan(chosen[2])
    assert 2 not in scores.argmax(dim=1)


def test_mean_average_precision() -> None:
    labels = torch.tensor([0, 0, 1, 1, 3])
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.mean([average_precision_score(labels == k, scores[:, k]) for k in (0, 1, 3)])
    assert mean_average_precision(scores, labels) == pytest.approx(expected)
