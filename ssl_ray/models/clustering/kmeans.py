"""K-means over rows that lie on many workers, none of which ever sees them all."""

import hashlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.models.counter_random import random_bits

# Scores of rows against centroids held at a time (128 MiB of float32).
_CHUNK_ELEMENTS = 2**25
# How far apart, relative to their size, the halves of a split centroid start.
_SPLIT = 1 / 1024


class KMeans(NamedTuple):
    """What k-means found.

    centroids: (k, D), the same on every rank. assignment: (n,) int64, the nearest centroid of each of this rank's
    rows. inertia: sum of squared distances over the rows of all ranks.
    """

    centroids: Tensor
    assignment: Tensor
    inertia: float


@torch.no_grad()
def kmeans(
    rows: Tensor, num_clusters: int, *, seed: int, iterations: int = 20, index: Tensor | None = None
) -> KMeans:
    """Lloyd's algorithm from k-means++ seeds (Arthur & Vassilvitskii 2007), over the rows of all ranks.

    rows: (n, D), this rank's; ranks may have unequal numbers. index: (n,) int64, each row's number in the whole, from
    which seeds are drawn; row i of rank r is row i * W + r by default. The answer follows from the seed and the rows
    with their numbers, whichever rank holds them: means are summed in float64. A centroid that lost its rows takes
    half of the largest cluster, as in faiss; the last assignment may still leave one empty. Stops early when no row
    moves.

    Beside its rows a rank holds at most 400 MiB, 2 + ln k floats a row and six a centroid's entry. An iteration sums
    k x (D + 1) numbers over ranks; seeding passes over the rows k times and exchanges 2 + ln k rows each time.

    Raises UserError if there are fewer rows than clusters, or no cluster is asked for.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    total = int(distributed.sum_(torch.tensor(len(rows), device=rows.device)))
    if not 1 <= num_clusters <= total:
        raise UserError(f"num_clusters: {num_clusters} clusters of {total} rows; use 1 to {total}")
    if index is None:
        index = torch.arange(len(rows), device=rows.device) * distributed.world_size() + distributed.rank()
    centroids = _seeds(rows, index, num_clusters, seed)
    previous = index.new_full((len(rows),), -1)
    for _ in range(iterations):
        assignment, _ = _best(rows, centroids)
        if int(distributed.sum_((assignment != previous).sum())) == 0:
            break
        means, sizes = cluster_means(rows, assignment, num_clusters)
        centroids = _fill_empty(means, sizes)
        previous = assignment
    assignment, distances = nearest(rows, centroids)
    return KMeans(centroids, assignment, float(distributed.sum_(distances.double().sum())))


@torch.no_grad()
def nearest(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Number (n,) int64 of the centroid nearest to each row, and the squared distance (n,) to it.

    rows: (n, D). centroids: (k, D). At most 128 MiB of scores are held at a time.
    """
    assignment, score = _best(rows, centroids)
    return assignment, (rows.square().sum(1) - 2 * score).clamp_(min=0)


@torch.no_grad()
def cluster_means(rows: Tensor, assignment: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Mean (k, D) and number (k,) of the rows of all ranks in each cluster; the mean of an empty one is 0.

    Summed in float64, so that the means do not depend on which rank holds which row; returned in the rows' dtype.
    """
    dim = rows.shape[1]
    sums = torch.zeros(num_clusters, dim + 1, dtype=torch.float64, device=rows.device)
    chunk = max(1, _CHUNK_ELEMENTS // dim)
    for part, clusters in zip(torch.split(rows, chunk), torch.split(assignment, chunk), strict=True):
        sums[:, :dim].scatter_add_(0, clusters[:, None].expand(-1, dim), part.double())
    sums[:, dim] = torch.bincount(assignment, minlength=num_clusters)
    distributed.sum_(sums)
    sizes = sums[:, dim]
    return (sums[:, :dim] / sizes.clamp(min=1)[:, None]).to(rows.dtype), sizes.long()


def _best(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """For each row x the centroid c of the largest score x.c - |c|^2 / 2, and the score: there |x - c|^2 is least."""
    bias = -0.5 * centroids.square().sum(1)
    chunk = max(1, _CHUNK_ELEMENTS // len(centroids))
    found = [torch.addmm(bias, part, centroids.T).max(1) for part in torch.split(rows, chunk)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def _seeds(rows: Tensor, index: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Greedy k-means++: several rows are drawn by their squared distance from the seeds so far, the best becomes one.

    The best leaves the smallest sum of squared distances. The draw is a race: a row arrives after an exponential time
    of that rate, made of its number, and the first few of all ranks are drawn.
    """
    tries = min(2 + int(math.log(num_clusters)), num_clusters)
    lengths = rows.square().sum(1)
    distances = torch.ones_like(lengths)
    seeds: list[Tensor] = []
    for turn in range(num_clusters):
        arrivals = -_uniform(index, f"{seed}/{turn}").log_() / distances
        first = arrivals.topk(min(tries, len(rows)), largest=False)
        mine = rows.new_zeros(tries, rows.shape[1] + 1, dtype=torch.float64)
        mine[:, 0] = torch.inf
        mine[: len(first.indices)] = torch.cat([first.values[:, None], rows[first.indices]], 1)
        everyones = distributed.gather(mine)
        drawn = everyones[everyones[:, 0].topk(tries, largest=False).indices, 1:].to(rows.dtype)
        to_drawn = torch.addmm(lengths, drawn, rows.T, alpha=-2).add_(drawn.square().sum(1, keepdim=True))
        to_drawn.clamp_(min=0)
        if turn > 0:
            torch.minimum(to_drawn, distances, out=to_drawn)
        best = distributed.sum_(to_drawn.sum(1, dtype=torch.float64)).argmin()
        distances = to_drawn[best]
        seeds.append(drawn[best])
    return torch.stack(seeds)


def _fill_empty(means: Tensor, sizes: Tensor) -> Tensor:
    """Centroids where each empty cluster got half of the largest: both start beside that one's mean."""
    centroids, sizes = means.clone(), sizes.cpu()
    step = means.new_full((means.shape[1],), _SPLIT)
    step[1::2] *= -1
    for empty in (sizes == 0).nonzero().flatten().tolist():
        largest = int(sizes.argmax())
        centroids[empty] = centroids[largest] * (1 + step)
        centroids[largest] *= 1 - step
        sizes[empty] = sizes[largest] // 2
        sizes[largest] -= sizes[empty]
    return centroids


def _uniform(index: Tensor, key: str) -> Tensor:
    """Numbers in (0, 1), float64, one per entry of `index` and made of it and the key alone."""
    offset = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)
    return (((random_bits(index, offset) >> 11) & ((1 << 53) - 1)).double() + 0.5) * 2.0**-53
