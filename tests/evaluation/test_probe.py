import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.evaluation.probe import linear_accuracy
from tests.ranks import Ranks


def blobs(seed: int, n: int, dim: int = 12, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Overlapping Gaussian blobs of unequal width along each axis."""
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return (centres[labels] + 1.5 * torch.randn(n, dim, generator=generator)) * torch.logspace(
        -2, 2, dim
    ) + 3, labels


def test_equals_scikit_learn() -> None:
    (bank, bank_labels), (queries, labels) = blobs(0, 400), blobs(1, 1000)
    scaler = StandardScaler().fit(bank.double().numpy())
    # Its C is for the sum over rows, our penalty for the mean.
    reference = LogisticRegression(C=1 / (400 * 1e-3), tol=1e-8, max_iter=5000)
    reference.fit(scaler.transform(bank.double().numpy()), bank_labels.numpy())
    expected = reference.score(scaler.transform(queries.double().numpy()), labels.numpy())
    ours = linear_accuracy(bank, bank_labels, queries, labels, iterations=1000)
    assert 0.5 < expected < 0.95
    assert ours == pytest.approx(expected, abs=0.0015)


def test_no_gradient_leads_back() -> None:
    (bank, bank_labels), (queries, labels) = blobs(0, 50), blobs(1, 20)
    bank.requires_grad_()
    queries.requires_grad_()
    linear_accuracy(bank * 2, bank_labels, queries * 2, labels)
    assert bank.grad is None
    assert queries.grad is None


def test_collapsed_features_know_the_largest_class() -> None:
    labels = torch.tensor([0, 1, 1, 1, 2])
    assert linear_accuracy(torch.ones(5, 4), labels, torch.ones(5, 4), labels) == 0.6


def test_unknown_classes_count_as_wrong() -> None:
    bank, labels = torch.eye(3).repeat(5, 1), torch.arange(3).repeat(5)
    assert linear_accuracy(bank, labels, torch.eye(3), torch.tensor([0, 1, 7])) == pytest.approx(2 / 3)


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(UserError, match="a probe of 3 images judged by 0"):
        linear_accuracy(torch.eye(3), torch.arange(3), torch.empty(0, 3), torch.empty(0, dtype=torch.int64))


def of_shard() -> float:
    (bank, bank_labels), (queries, labels) = blobs(0, 301), blobs(1, 501)
    rows = slice(distributed.rank(), None, distributed.world_size())
    return linear_accuracy(bank[rows], bank_labels[rows], queries[rows], labels[rows])


def lopsided() -> float:
    """All rows on rank 0; the others have none."""
    (bank, bank_labels), (queries, labels) = blobs(0, 301), blobs(1, 501)
    rows = slice(None) if distributed.rank() == 0 else slice(0)
    return linear_accuracy(bank[rows], bank_labels[rows], queries[rows], labels[rows])


@pytest.mark.parametrize("work", [of_shard, lopsided])
def test_two_ranks_equal_one(work, ranks: Ranks) -> None:
    assert ranks(2, work) == [of_shard()] * 2
