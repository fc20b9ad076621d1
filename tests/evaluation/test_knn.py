import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.evaluation import knn
from ssl_ray.evaluation.knn import gather_rows, knn_accuracy, knn_predict
from tests.ranks import Ranks


def blobs(seed: int, n: int, dim: int = 12, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Overlapping Gaussian blobs around fixed centres: kNN is right often, not always."""
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    scale = torch.rand(n, 1, generator=generator) * 9 + 0.1  # must not matter: cosine similarity
    return (centres[labels] + 1.5 * torch.randn(n, dim, generator=generator)) * scale, labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (50, 0.5)])
def test_equals_scikit_learn(k: int, temperature: float) -> None:
    (bank, bank_labels), (queries, _) = blobs(0, 400), blobs(1, 150)
    reference = KNeighborsClassifier(
        n_neighbors=k,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    ).fit(bank.double().numpy(), bank_labels.numpy())
    scores = knn_predict(bank, bank_labels, queries, k, temperature, num_classes=5)
    expected = reference.predict_proba(queries.double().numpy())
    np.testing.assert_allclose(scores.numpy(), expected, atol=2e-5)


def test_chunks_do_not_change_the_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    (bank, bank_labels), (queries, _) = blobs(0, 100), blobs(1, 64)
    whole = knn_predict(bank, bank_labels, queries, 10, 0.1, 5)
    monkeypatch.setattr(knn, "_CHUNK_ELEMENTS", 700)  # 7 queries at a time; 64 is not a multiple
    torch.testing.assert_close(knn_predict(bank, bank_labels, queries, 10, 0.1, 5), whole)


def test_weights_decide_not_the_number_of_votes() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[2.0, 0.1]])
    assert knn_predict(bank, labels, query, 3, 0.07, 2).argmax() == 0
    assert (
        knn_predict(bank, labels, query, 3, 100.0, 2).argmax() == 1
    )  # nearly equal weights: two against one


def test_sharp_temperature_stays_finite() -> None:
    (bank, labels), (queries, _) = blobs(0, 50), blobs(1, 20)
    scores = knn_predict(bank, labels, queries, 5, 1e-3, 5)  # exp(1 / T) is infinite in float32
    torch.testing.assert_close(scores.sum(1), torch.ones(20))


def test_half_precision_is_computed_in_float32() -> None:
    (bank, labels), (queries, _) = blobs(0, 200), blobs(1, 50)
    half, query = bank.bfloat16(), queries.bfloat16()
    torch.testing.assert_close(
        knn_predict(half, labels, query, 9, 0.07, 5),
        knn_predict(half.float(), labels, query.float(), 9, 0.07, 5),
    )


def test_accuracy_counts_unknown_classes_as_wrong() -> None:
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    assert knn_accuracy(bank, labels, torch.eye(3), torch.tensor([0, 1, 7]), 1, 0.07) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("k", "temperature", "words"),
    [(4, 0.07, "4 neighbours of 3"), (0, 0.07, "0 neighbours"), (1, 0.0, "temperature")],
)
def test_mistakes_are_named(k: int, temperature: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        knn_accuracy(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3), k, temperature)


def test_no_queries_is_an_error() -> None:
    with pytest.raises(UserError, match="0 held-out images"):
        knn_accuracy(
            torch.eye(3), torch.arange(3), torch.empty(0, 3), torch.empty(0, dtype=torch.int64), 1, 0.07
        )


def sharded_accuracy() -> tuple[float, list[list[float]]]:
    (bank, bank_labels), (queries, labels) = blobs(0, 301), blobs(1, 101)
    rows = slice(distributed.rank(), None, distributed.world_size())
    accuracy = knn_accuracy(bank[rows], bank_labels[rows], queries[rows], labels[rows], 20, 0.07)
    return accuracy, gather_rows(bank[rows]).tolist()


def uneven_rows() -> list[int]:
    return gather_rows(
        torch.arange(3) if distributed.rank() == 0 else torch.empty(0, dtype=torch.int64)
    ).tolist()


def test_two_processes_equal_one(ranks: Ranks) -> None:
    alone, rows = sharded_accuracy()
    assert 0.5 < alone < 1
    assert ranks(2, sharded_accuracy) == [(alone, rows)] * 2


def test_a_rank_may_have_no_rows(ranks: Ranks) -> None:
    assert ranks(2, uneven_rows) == [[0, 1, 2]] * 2
