import math

import numpy as np
import pytest
import torch

from ssl_ray import distributed
from ssl_ray.evaluation import spectrum
from ssl_ray.evaluation.diagnostics import embedding_rank, embedding_std
from tests.ranks import Ranks


def normal(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_std_of_isotropic_embeddings_is_one() -> None:
    assert embedding_std(normal(4000, 256) * 7) == pytest.approx(1, abs=0.01)


def test_std_of_one_point_is_zero() -> None:
    assert embedding_std(torch.ones(100, 64) * torch.rand(100, 1).add(0.1)) == pytest.approx(0, abs=1e-5)


def test_std_equals_the_direct_formula() -> None:
    z = normal(200, 16).double().abs().numpy()
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    expected = unit.std(axis=0).mean() * math.sqrt(16)
    assert embedding_std(torch.from_numpy(z)) == pytest.approx(expected, rel=1e-5)


def test_std_of_half_precision_does_not_cancel() -> None:
    z = torch.ones(500, 32) + 0.05 * normal(500, 32)
    assert embedding_std(z.bfloat16()) == pytest.approx(embedding_std(z), rel=0.05)


def test_std_is_bounded_by_the_mean_cosine_similarity() -> None:
    z = normal(500, 32) + 3
    unit = torch.nn.functional.normalize(z, dim=1)
    assert embedding_std(z) <= math.sqrt(1 - float((unit @ unit.T).mean())) + 1e-5


@pytest.mark.parametrize("rank", [1, 4, 32])
def test_rank_counts_equal_directions(rank: int) -> None:
    basis = torch.linalg.qr(normal(32, 32)).Q[:rank]
    z = basis.repeat(10, 1) * 3
    assert embedding_rank(z) == pytest.approx(rank, rel=1e-4)


def test_rank_equals_the_direct_formula() -> None:
    z = normal(300, 20) @ torch.diag(torch.logspace(0, -2, 20))
    s = np.linalg.svd(z.double().numpy(), compute_uv=False)
    share = s / s.sum()
    assert embedding_rank(z) == pytest.approx(float(np.exp(-(share * np.log(share)).sum())), rel=1e-6)


def test_rank_of_zeros_and_of_nan() -> None:
    assert embedding_rank(torch.zeros(5, 4)) == 1
    assert math.isnan(embedding_rank(torch.full((5, 4), math.nan)))


def test_rank_of_wide_embeddings_is_that_of_their_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    z = normal(60, 50) @ torch.diag(torch.logspace(0, -2, 50))
    monkeypatch.setattr(spectrum, "WIDE", 20)
    s = np.linalg.svd(z[:20].double().numpy(), compute_uv=False)
    share = s / s.sum()
    assert embedding_rank(z) == pytest.approx(float(np.exp(-(share * np.log(share)).sum())), rel=1e-6)


def shared() -> torch.Tensor:
    return normal(101, 24) + 1


def shard() -> tuple[float, float]:
    z = distributed.local_rows(shared())
    return embedding_std(z), embedding_rank(z)


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    whole = shard()
    for std, rank in ranks(2, shard):
        assert std == pytest.approx(whole[0], rel=1e-6)
        assert rank == pytest.approx(whole[1], rel=1e-9)
