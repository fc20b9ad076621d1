import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.evaluation import spectrum
from ssl_ray.evaluation.spectrum import alpha_req, effective_rank, eigenvalues, top_direction
from tests.ranks import Ranks


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def power_law(alpha: float, n: int = 6000, dim: int = 200) -> Tensor:
    """Gaussian rows whose covariance has the eigenvalues j^-alpha, in a random basis, around a mean."""
    basis = torch.linalg.qr(normal(dim, dim, seed=1)).Q
    scale = torch.arange(1, dim + 1).double() ** (-alpha / 2)
    return (normal(n, dim).double() * scale) @ basis.double() + 5


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_of_a_known_decay(alpha: float) -> None:
    assert alpha_req(power_law(alpha)) == pytest.approx(alpha, abs=0.08)


def test_alpha_of_isotropic_features_is_near_zero() -> None:
    assert alpha_req(normal(20000, 100)) == pytest.approx(0, abs=0.05)


def test_alpha_equals_numpy_weighted_fit() -> None:
    z = power_law(1.0, 300, 40)
    values = np.linalg.eigvalsh(np.cov(z.numpy().T, bias=True))[::-1]
    j = np.arange(5, 21)  # min(D / 2, 100) is 20
    slope, _ = np.polyfit(np.log(j), np.log(values[4:20]), 1, w=1 / np.sqrt(j))
    assert alpha_req(z) == pytest.approx(-slope, rel=1e-8)


def test_alpha_of_few_directions_or_nan_is_undefined() -> None:
    assert math.isnan(alpha_req(normal(100, 2) @ normal(2, 50)))
    assert math.isnan(alpha_req(torch.ones(100, 50)))
    assert math.isnan(alpha_req(torch.full((10, 50), math.nan)))


def test_eigenvalues_are_those_of_the_covariance() -> None:
    z = normal(50, 8) + 3
    expected = np.linalg.eigvalsh(np.cov(z.double().numpy().T, bias=True))[::-1]
    np.testing.assert_allclose(eigenvalues(z, centred=True).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
def test_wide_features_have_the_spectrum_of_their_first_rows(
    centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = normal(40, 12) + 1
    expected = eigenvalues(z[:10], centred=centred)[:9]
    monkeypatch.setattr(spectrum, "WIDE", 10)
    torch.testing.assert_close(eigenvalues(z, centred=centred)[:9], expected)


def test_top_direction_of_known_variances() -> None:
    z = (
        torch.cat([torch.diag(torch.tensor([3.0, 1.0, 1.0])), -torch.diag(torch.tensor([3.0, 1.0, 1.0]))])
        + 50
    )
    assert top_direction(z) == pytest.approx(9 / 11)
    assert top_direction(normal(5000, 50)) == pytest.approx(1 / 50, abs=0.005)
    assert top_direction(normal(100, 1) @ normal(1, 50) + 7) == pytest.approx(1)


def test_top_direction_of_one_point_and_of_nan() -> None:
    assert top_direction(torch.full((10, 4), 0.5)) == 0
    assert math.isnan(top_direction(torch.full((10, 4), math.nan)))


@pytest.mark.parametrize("count", [1, 3, 17])
def test_effective_rank_counts_equal_entries(count: int) -> None:
    assert effective_rank(torch.cat([torch.full((count,), 7.0), torch.zeros(5)])) == pytest.approx(count)


def of_shard() -> tuple[float, float, list[float]]:
    z = distributed.local_rows(power_law(1.0, 301, 30))
    return alpha_req(z), top_direction(z), eigenvalues(z, centred=False).tolist()


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    alpha, top, values = of_shard()
    for its_alpha, its_top, its_values in ranks(2, of_shard):
        assert its_alpha == pytest.approx(alpha, rel=1e-9)
        assert its_top == pytest.approx(top, rel=1e-9)
        assert its_values == pytest.approx(values, rel=1e-9)
