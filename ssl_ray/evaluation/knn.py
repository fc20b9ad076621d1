"""Weighted k-nearest-neighbour classification of features: what a representation knows, with nothing trained.

N rows in the bank, Q queries, D feature width. Everything is computed in float32, whatever arrives.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.evaluation.unit import unit

# Similarities held at a time (128 MiB of float32): all N bank rows, for as many queries as fit.
_CHUNK_ELEMENTS = 2**25


@torch.no_grad()
def knn_predict(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int, temperature: float, num_classes: int
) -> Tensor:
    """Votes of the k most similar bank rows for each class. Source: Wu et al. 2018, arXiv 1805.01978, sec. 3.4.

    A neighbour with cosine similarity s votes for its label with weight exp(s / T). A query's votes are divided by
    their sum: no temperature overflows, and the winner is the same. bank: (N, D), bank_labels: (N,) int64 in
    0..num_classes-1, queries: (Q, D); any scale, normalised here. Returns (Q, num_classes), rows sum to 1. A query that
    is not finite has NaN for votes, and one bank row that is not gives them to all.

    Raises UserError if k is not in 1..N or T is not positive.
    """
    if not 1 <= k <= len(bank):
        raise UserError(f"evaluation.k: {k} neighbours of {len(bank)} images; use a k from 1 to {len(bank)}")
    if not temperature > 0:
        raise UserError(f"evaluation.temperature: {temperature} is not positive; 0.07 is usual")
    votes = knn_votes(bank, bank_labels, queries, [k], [temperature], num_classes)
    return torch.cat([vote[k, temperature] for vote in votes])


@torch.no_grad()
def knn_votes(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    ks: Sequence[int],
    temperatures: Sequence[float],
    num_classes: int,
) -> Iterator[dict[tuple[int, float], Tensor]]:
    """Votes of `knn_predict` for every k and temperature from one search; a dict for each run of queries, in order.

    Queries come in runs of as many rows as fit: all votes at once would be as large as queries x classes x settings.
    """
    bank, queries = unit(bank), unit(queries)
    for query in torch.split(queries, max(1, _CHUNK_ELEMENTS // len(bank))):
        similarity, neighbours = (query @ bank.T).topk(max(ks), dim=1)  # the most similar first
        classes = bank_labels[neighbours]
        votes = {}
        for k in ks:
            for temperature in temperatures:
                score = torch.zeros(len(query), num_classes, device=query.device)
                weight = (similarity[:, :k] / temperature).softmax(dim=1)
                votes[k, temperature] = score.scatter_add_(1, classes[:, :k], weight)
        yield votes


@torch.no_grad()
def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, k: int, temperature: float
) -> float:
    """Share of queries whose class wins the vote, in 0..1; the same on every rank, for any number of ranks.

    Each rank passes its own rows of the bank and its own queries: row i of rank r is row i * W + r of the whole. The
    numbers of rows may differ. A query of a class that the bank does not hold counts as wrong. NaN where a feature is
    not finite: the largest of such votes would be class 0's.

    Raises UserError as `knn_predict` does, and when there is no query at all.
    """
    bank, bank_labels = gather_rows(bank), gather_rows(bank_labels)
    num_classes = int(bank_labels.max()) + 1 if len(bank_labels) else 0
    scores = knn_predict(bank, bank_labels, queries, k, temperature, num_classes)
    right = (scores.argmax(dim=1) == labels).sum()
    lost = scores.isnan().any(dim=1).sum()
    counts = torch.stack([torch.tensor(len(queries), device=queries.device), right, lost])
    total, correct, unknown = distributed.sum_(counts).tolist()
    if not total:
        raise UserError(
            "evaluation: 0 held-out images to classify; hold some out, or evaluate without labels"
        )
    return math.nan if unknown else float(correct / total)


@torch.no_grad()
def gather_rows(x: Tensor) -> Tensor:
    """`distributed.gather` for ranks with unequal numbers of rows: pads to the longest, and drops the padding."""
    if not distributed.is_distributed():
        return x
    counts = distributed.gather(torch.tensor([len(x)], device=x.device))
    longest = int(counts.max())
    padded = x.new_zeros(longest, *x.shape[1:])
    padded[: len(x)] = x
    real = (
        torch.arange(longest, device=x.device)[:, None] < counts
    )  # (rows, W): the order in which gather returns
    return distributed.gather(padded)[real.flatten()]
