"""Low-shot linear SVMs, one class against the rest, as published for VOC07.

Source: Goyal et al. 2019, arXiv 1905.01235, sec. 6.1 and B: LIBLINEAR, squared hinge, positives weigh twice, the cost
chosen by cross-validation for each class.
"""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, list[float]]:
    """Decision values (Q, K) of one SVM per class, and the cost chosen for each; features are scaled to length 1.

    Costs are compared by average precision in up to three folds of the training rows; with one row of a class there
    are no folds, and the cost is 1. A class without rows gets -inf. Classes are trained in threads.
    """
    x, q = (F.normalize(t.float(), dim=1).double().numpy() for t in (features, queries))
    y = labels.numpy()
    scores = np.full((len(q), classes), -np.inf)
    chosen = [float("nan")] * classes
    present = np.unique(y).tolist()

    def one(label: int) -> None:
        target = np.where(y == label, 1, -1)
        chosen[label] = _best_cost(x, target, costs, seed)
        scores[:, label] = _svm(chosen[label], seed).fit(x, target).decision_function(q)

    # LIBLINEAR lets go of Python's lock. A cost that does not converge in the published 2,000 steps need not be said.
    with warnings.catch_warnings(), ThreadPoolExecutor(cpu_count() or 1) as pool:
        warnings.simplefilter("ignore")
        for done, _ in enumerate(pool.map(one, present)):
            if on_progress:
                on_progress(done + 1)
    return torch.from_numpy(scores), chosen


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Mean over classes of the area under the precision-recall steps, in 0..1; classes without a query are left out."""
    from sklearn.metrics import average_precision_score

    y, s = labels.numpy(), np.nan_to_num(scores.numpy(), neginf=-1e30)
    present = [label for label in range(s.shape[1]) if (y == label).any()]
    return float(np.mean([average_precision_score(y == label, s[:, label]) for label in present]))


def _best_cost(x: np.ndarray, target: np.ndarray, costs: Sequence[float], seed: int) -> float:
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    folds = min(FOLDS, int((target == 1).sum()), int((target == -1).sum()))
    if folds < 2:
        return 1.0
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, target))

    def precision(cost: float) -> float:
        return float(
            np.mean(
                [
                    average_precision_score(
                        target[test] == 1,
                        _svm(cost, seed).fit(x[train], target[train]).decision_function(x[test]),
                    )
                    for train, test in splits
                ]
            )
        )

    return max(costs, key=precision)


def _svm(cost: float, seed: int) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(
        C=cost, class_weight={1: 2, -1: 1}, dual=True, tol=1e-4, max_iter=2000, random_state=seed
    )
