import math

import pytest
import torch
import torch.nn.functional as F
from scipy.special import hyp0f1
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.evaluation import sphere
from ssl_ray.evaluation.sphere import alignment, uniformity
from tests.ranks import Ranks


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [3, 16, 128])
def test_uniformity_of_the_uniform_sphere(dim: int) -> None:
    """There E exp(4 <x, y>) = 0F1(; D / 2; 4), the moment generating function of a coordinate."""
    expected = -4 + math.log(hyp0f1(dim / 2, 4))
    assert uniformity(7 * normal(2000, dim)) == pytest.approx(expected, abs=0.01)


def test_uniformity_of_one_point_is_zero() -> None:
    assert uniformity(torch.ones(50, 8) * torch.rand(50, 1).add(0.1)) == pytest.approx(0, abs=1e-5)


def test_uniformity_equals_the_direct_formula() -> None:
    z = normal(40, 5)
    distances = torch.pdist(F.normalize(z, dim=1).double())
    assert uniformity(z) == pytest.approx(float((-2 * distances.square()).exp().mean().log()), rel=1e-6)


def test_uniformity_looks_at_the_first_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    z = normal(40, 5)
    expected = uniformity(z[:10])
    monkeypatch.setattr(sphere, "ROWS", 10)
    assert uniformity(z) == expected


def test_uniformity_of_one_row_is_undefined() -> None:
    assert math.isnan(uniformity(normal(1, 5)))


def test_alignment_equals_the_direct_formula() -> None:
    z = normal(30, 4, 6)
    unit = F.normalize(z.double(), dim=2)
    pairs = [(unit[:, i] - unit[:, j]).square().sum(1) for i in range(4) for j in range(4) if i != j]
    assert alignment(z) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-9)


def test_alignment_of_equal_and_of_opposite_views() -> None:
    z = normal(30, 6)
    assert alignment(torch.stack([z, 3 * z], dim=1)) == pytest.approx(0, abs=1e-9)
    assert alignment(torch.stack([z, -z], dim=1)) == pytest.approx(4)


def test_alignment_of_unrelated_views_is_two() -> None:
    assert alignment(normal(20000, 2, 64)) == pytest.approx(2, abs=0.01)


def of_shard() -> tuple[float, float]:
    rows, pairs = distributed.local_rows(normal(101, 9)), distributed.local_rows(normal(51, 2, 9))
    return uniformity(rows), alignment(pairs)


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    alone = of_shard()
    for seen in ranks(2, of_shard):
        assert seen == pytest.approx(alone, rel=1e-6)
