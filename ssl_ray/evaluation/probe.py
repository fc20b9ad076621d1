"""A linear probe of frozen features: what a linear classifier can read from them.

It is fitted anew at each evaluation and thrown away. So it has no state that a checkpoint would have to hold, and
nothing leads from its labels to the backbone: features arrive as numbers without a graph.
"""

import math

import torch
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.evaluation.logistic import fit_logistic
from ssl_ray.evaluation.spectrum import float64
from ssl_ray.evaluation.unit import count_not_finite

_ROWS = 65536  # queries judged at a time


def linear_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    *,
    penalty: float = 1e-3,
    iterations: int = 100,
) -> float:
    """Share of queries that a classifier fitted to the bank gets right, in 0..1; the same on any number of ranks.

    Multinomial logistic regression on features of mean 0 and variance 1 (those of the bank): the mean cross-entropy
    plus penalty / 2 |W|^2, by L-BFGS in float64, for at most so many iterations. Features that do not vary say
    nothing. Each rank passes its own rows. bank: (n, D), queries: (m, D), labels int64, not negative. A query of a
    class that the bank does not hold counts as wrong. NaN where a feature is not finite.

    Raises UserError when there is nothing to fit or to judge.
    """
    bank, queries = float64(bank.detach()), float64(queries.detach())
    bank_labels, labels = bank_labels.to(bank.device), labels.to(bank.device)
    counts = distributed.sum_(torch.tensor([len(bank), len(queries)], device=bank.device))
    if not counts.all():
        raise UserError(
            f"evaluation: a probe of {int(counts[0])} images judged by {int(counts[1])}; hold some out, or evaluate "
            "without labels"
        )
    if count_not_finite(bank, queries)[0]:
        return math.nan
    mean = distributed.sum_(bank.sum(dim=0)) / counts[0]
    std = (distributed.sum_((bank - mean).square().sum(dim=0)) / counts[0]).sqrt()
    scale = torch.where(std > 1e-6 * std.max(), 1 / std, torch.zeros_like(std)).nan_to_num(posinf=0)
    bank, queries = (bank - mean) * scale, (queries - mean) * scale
    weight, bias = fit_logistic(bank, bank_labels, _num_classes(bank_labels), penalty, iterations=iterations)
    predicted = [(part @ weight + bias).argmax(dim=1) for part in torch.split(queries, _ROWS)]
    correct = distributed.sum_((torch.cat(predicted) == labels).sum())
    return int(correct) / int(counts[1])


def _num_classes(labels: Tensor) -> int:
    """One more than the largest label of all ranks."""
    mine = labels.max() if len(labels) else labels.new_tensor(-1)
    return int(distributed.gather(mine[None]).max()) + 1
