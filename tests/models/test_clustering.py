"""Distributed k-means, PCA whitening and class weights, on one process; tests/distributed shares the rows out."""

import pytest
import torch
from torch import Tensor

from ssl_ray.errors import UserError
from ssl_ray.models.clustering import class_weights, kmeans, whiten
from ssl_ray.models.clustering.kmeans import cluster_means, nearest
from tests.ranks import Ranks


def blobs(clusters: int = 6, each: int = 20, dim: int = 5) -> tuple[Tensor, Tensor]:
    """Rows around well separated centres, and which centre each belongs to."""
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(clusters, dim, generator=generator)
    labels = torch.arange(clusters).repeat(each)
    return centres[labels] + torch.randn(len(labels), dim, generator=generator), labels


def partition(labels: Tensor) -> Tensor:
    return labels[:, None] == labels


@pytest.mark.parametrize("seed", range(5))
def test_separate_clusters_are_found(seed):
    rows, labels = blobs()
    found = kmeans(rows, 6, seed=seed)
    assert torch.equal(partition(found.assignment), partition(labels))
    means = torch.stack([rows[found.assignment == k].mean(0) for k in range(6)])
    torch.testing.assert_close(found.centroids, means)
    distances = (rows - means[found.assignment]).square().sum()
    assert found.inertia == pytest.approx(distances.item(), rel=1e-5)


def test_the_seed_decides():
    rows, _ = blobs(clusters=20)
    first, again, other = (kmeans(rows, 8, seed=s, iterations=1) for s in (0, 0, 1))
    assert torch.equal(first.centroids, again.centroids)
    assert not torch.equal(first.centroids, other.centroids)


def test_rows_in_another_order_are_clustered_alike():
    """A seed is drawn by a row's number, not by its place."""
    rows, _ = blobs(clusters=20)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    index = torch.arange(len(rows))
    straight = kmeans(rows, 8, seed=3, index=index)
    shuffled = kmeans(rows[order], 8, seed=3, index=index[order])
    torch.testing.assert_close(shuffled.centroids, straight.centroids)
    assert torch.equal(shuffled.assignment, straight.assignment[order])


def test_more_iterations_never_make_it_worse():
    rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(2))
    inertia = [kmeans(rows, 10, seed=0, iterations=n).inertia for n in (0, 1, 3, 20)]
    assert inertia == sorted(inertia, reverse=True)
    assert inertia[0] > inertia[-1]


def test_an_empty_cluster_takes_half_of_the_largest():
    """Two seeds at one place: the second gets no row, and must not stay without."""
    rows = torch.cat([torch.zeros(30, 2), torch.tensor([[9.0, 9.0]])])
    rows[:30, 0] = torch.linspace(1, 2, 30)
    found = kmeans(rows, 3, seed=0)
    assert torch.bincount(found.assignment, minlength=3).min() > 0


def test_rows_all_alike_are_no_error():
    found = kmeans(torch.ones(8, 3), 4, seed=0)
    assert torch.isfinite(found.centroids).all()
    assert found.inertia == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("clusters", [0, 7])
def test_fewer_rows_than_clusters_are_refused(clusters):
    with pytest.raises(UserError, match=r"num_clusters: . clusters of 6 rows; use 1 to 6"):
        kmeans(torch.zeros(6, 2), clusters, seed=0)


def test_nearest_is_the_smallest_distance():
    rows, centroids = torch.randn(50, 3), torch.randn(7, 3)
    assignment, squared = nearest(rows, centroids)
    distances = torch.cdist(rows, centroids)
    assert torch.equal(assignment, distances.argmin(1))
    torch.testing.assert_close(squared, distances.min(1).values.square(), rtol=1e-4, atol=1e-5)


def test_whitened_rows_have_unit_covariance_in_the_leading_directions():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20000, 6, generator=generator, dtype=torch.float64) * torch.tensor(
        [9, 5, 3, 1, 0.1, 0.01]
    )
    mix, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    white = whiten(rows @ mix + 7, 3)
    torch.testing.assert_close(white.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(3, dtype=torch.float64))
    # What was mixed in comes out again: each direction is one of the first three columns.
    correlation = torch.corrcoef(torch.cat([white, rows[:, :3]], 1).T)[:3, 3:].abs()
    torch.testing.assert_close(correlation, torch.eye(3, dtype=torch.float64), atol=0.05, rtol=0)


def test_a_direction_without_variance_is_not_blown_up():
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    flat = torch.cat([rows, rows[:, :1], torch.full((50, 1), 4.0)], 1)
    white = whiten(flat, 8)
    assert white.shape == (50, 5)
    assert white.std(0, correction=0).tolist() == pytest.approx([1, 1, 1, 0, 0], abs=1e-3)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_weights_keep_the_scale_of_the_loss(power):
    sizes = torch.tensor([50, 10, 0, 40])
    weights = class_weights(sizes, power)
    assert weights[2] == 0
    assert (weights * sizes).sum().item() == pytest.approx(100)
    assert (weights[1] / weights[0]).item() == pytest.approx(5**power)
    uniform = class_weights(torch.tensor([7, 7, 7]), power)
    assert uniform.tolist() == [1, 1, 1], "plain cross-entropy"


def test_power_one_gives_every_cluster_the_same_part():
    sizes = torch.tensor([50, 10, 40])
    assert (class_weights(sizes, 1.0) * sizes).tolist() == pytest.approx([100 / 3] * 3)


def shared_out() -> dict[str, Tensor]:
    """All of it on this rank's rows, dealt in turn; 121 rows, so that some ranks have one more."""
    from ssl_ray import distributed

    rows, _ = blobs(clusters=11, each=11)
    mine, index = distributed.local_rows(rows), distributed.local_rows(torch.arange(len(rows)))
    white = whiten(mine, 4)
    found = kmeans(white, 7, seed=5)
    labels = torch.zeros(len(rows), dtype=torch.long)
    labels[index] = found.assignment
    whole = torch.zeros(len(rows), 4)
    whole[index] = white
    return {
        "labels": distributed.sum_(labels),
        "white": distributed.sum_(whole),
        "centroids": found.centroids,
        "inertia": torch.tensor(found.inertia),
        "means": cluster_means(white, found.assignment, 9)[0],
    }


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_finds_the_same(world_size, ranks: Ranks):
    alone = shared_out()
    for seen in ranks(world_size, shared_out):
        assert torch.equal(seen["labels"], alone["labels"])
        for name, value in alone.items():
            torch.testing.assert_close(seen[name], value, rtol=1e-5, atol=1e-5)


def few_rows() -> dict[str, Tensor]:
    """Fewer rows than ranks."""
    from ssl_ray import distributed

    rows = distributed.local_rows(torch.tensor([[0.0], [1.0], [10.0]]))
    return {"inertia": torch.tensor(kmeans(rows, 2, seed=0).inertia)}


def test_a_rank_may_have_no_rows(ranks: Ranks):
    for seen in ranks(4, few_rows):
        assert seen["inertia"].item() == pytest.approx(0.5)
