import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.evaluation.lidar import lidar
from tests.ranks import Ranks


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(n: int, views: int, dim: int, rank: int, noise: float) -> Tensor:
    """Views around images that differ along `rank` directions only, alike along each."""
    basis = torch.linalg.qr(normal(dim, dim, seed=1)).Q[:rank]
    return (normal(n, rank) @ basis)[:, None] + noise * normal(n, views, dim, seed=2)


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_counts_the_directions_along_which_images_differ(rank: int) -> None:
    assert lidar(images(2000, 10, 20, rank, noise=0.02)) == pytest.approx(rank, rel=0.03)


def test_equals_the_direct_formula() -> None:
    z = images(60, 4, 8, 5, noise=0.5).double().numpy()
    means = z.mean(1)
    s_b = np.cov(means.T, bias=True)
    s_w = np.mean([(view - mean).T @ (view - mean) / 4 for view, mean in zip(z, means, strict=True)], axis=0)
    s_w += 1e-4 * (np.trace(s_b) + np.trace(s_w)) / 8 * np.eye(8)
    root = np.linalg.inv(scipy.linalg.sqrtm(s_w))
    share = np.linalg.eigvalsh(root @ s_b @ root)
    share = share / share.sum()
    assert lidar(torch.from_numpy(z)) == pytest.approx(
        float(np.exp(-(share * np.log(share)).sum())), rel=1e-8
    )


def test_directions_that_only_augmentation_changes_do_not_count() -> None:
    z = images(2000, 10, 20, 4, noise=0.01)
    z[:, :, :] += normal(2000, 10, 1, seed=3) * normal(20, seed=4)
    assert lidar(z) == pytest.approx(4, rel=0.05)


def test_scale_does_not_matter() -> None:
    z = images(100, 4, 8, 5, noise=0.5)
    assert lidar(1000 * z) == pytest.approx(lidar(z), rel=1e-5)


def test_collapsed_and_not_finite() -> None:
    assert lidar(torch.ones(50, 4, 8)) == 1
    assert math.isnan(lidar(torch.full((50, 4, 8), math.nan)))


def of_shard() -> float:
    return lidar(distributed.local_rows(images(51, 4, 8, 5, noise=0.5)))


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    assert ranks(2, of_shard) == pytest.approx([of_shard()] * 2, rel=1e-9)
