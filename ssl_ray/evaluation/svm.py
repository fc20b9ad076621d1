"""Low-shot linear SVMs, one class against the rest, as published for VOC07.

Source: Goyal et al. 2019, arXiv 1905.01235, sec. 6.1 and B: LIBLINEAR, squared hinge, positives weigh twice, the cost
chosen by cross-validation. There it is chosen for each class, which is enough for average precision; here it is one for
all classes, because values of different costs cannot be compared, and the largest is to name the class.

The primal problem is solved: LIBLINEAR's solver of the dual draws its order from one random stream of the process, so
that classes trained in threads would change each other's results.
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_ray.evaluation.unit import unit

COSTS = (1e-4, 2.0**-10, 2.0**-8, 2.0**-6, 2.0**-4, 1e-1, 1.0, 10.0, 100.0)
"""Of the published 2^-19..2^-4 and 10^-7..10^2, the part in which costs differ on features of length 1."""
FOLDS = 3


def svm_scores(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    classes: int,
    *,
    costs: Sequence[float] = COSTS,
    seed: int = 0,
) -> tuple[Tensor, float]:
    """Decision values (Q, K) of one SVM per class, and the cost chosen for all; features are scaled to length 1.

    Costs are compared by mean average precision in up to three folds of the training rows; with one row of a class
    there are no folds, and the cost is 1. A class without rows gets -inf. Classes are trained in threads.
    """
    x, q = (unit(t).double().numpy() for t in (features, queries))
    present = torch.bincount(labels).nonzero().flatten().tolist()
    targets = {label: np.where(labels.numpy() == label, 1, -1) for label in present}
    scores = np.full((len(q), classes), -np.inf)
    cost = 1.0
    # LIBLINEAR lets go of Python's lock. A cost that does not converge in the published 2,000 steps need not be said.
    with warnings.catch_warnings(), ThreadPoolExecutor(cpu_count() or 1) as pool:
        warnings.simplefilter("ignore")
        folds = min(FOLDS, *(int((target == 1).sum()) for target in targets.values()))
        if folds > 1 and len(present) > 1:
            reached = list(pool.map(lambda t: _precisions(x, t, costs, folds, seed), targets.values()))
            cost = costs[int(np.mean(reached, axis=0).argmax())]
        fitted = pool.map(lambda t: _svm(cost).fit(x, t).decision_function(q), targets.values())
        for label, values in zip(present, fitted, strict=True):
            scores[:, label] = values
    return torch.from_numpy(scores), cost


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Mean over classes of the area under the precision-recall steps, in 0..1; classes without a query are left out."""
    from sklearn.metrics import average_precision_score

    y, s = labels.numpy(), np.nan_to_num(scores.numpy(), neginf=-1e30)
    present = [label for label in range(s.shape[1]) if (y == label).any()]
    return float(np.mean([average_precision_score(y == label, s[:, label]) for label in present]))


def _precisions(
    x: np.ndarray, target: np.ndarray, costs: Sequence[float], folds: int, seed: int
) -> list[float]:
    """Average precision of one class at each cost, the mean over folds."""
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, target))

    def precision(cost: float, train: np.ndarray, test: np.ndarray) -> float:
        values = _svm(cost).fit(x[train], target[train]).decision_function(x[test])
        return float(average_precision_score(target[test] == 1, values))

    return [float(np.mean([precision(cost, *split) for split in splits])) for cost in costs]


def _svm(cost: float) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=False, tol=1e-4, max_iter=2000)
