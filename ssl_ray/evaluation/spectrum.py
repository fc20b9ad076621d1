"""The spectrum of embeddings: over how many directions they spread, and how fast the spread decays.

Rows (B, D) are this rank's share; results cover all ranks. Everything is summed in float64, which Apple's accelerators
do not have: there it happens on the CPU.
"""

import math

import torch
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.evaluation.knn import gather_rows

WIDE = 2048
"""Embeddings of more dimensions than this are judged by so many rows at most: a matrix of D x D would cost more than
the evaluation."""
_FIRST = 5  # eigenvalues before this one do not count for the decay: the mean's and the classes' directions
_LAST = 100
_NOISE = 1e-9  # eigenvalues below this share of the first are rounding


@torch.no_grad()
def eigenvalues(z: Tensor, *, centred: bool) -> Tensor:
    """Eigenvalues of Z^T Z / n over the n rows of all ranks, largest first, (min(D, WIDE),) float64; not negative.

    centred: of the covariance. With D > WIDE those of the first WIDE rows alone. All NaN where z is not finite.
    """
    z = float64(z)
    if z.shape[1] > WIDE:
        rows = gather_rows(z)[:WIDE]
        if centred:
            rows = rows - rows.mean(dim=0)
        matrix = rows @ rows.T / max(1, len(rows))
    else:
        count = distributed.sum_(torch.tensor(float(len(z)), device=z.device, dtype=z.dtype)).clamp(min=1)
        if centred:
            z = z - distributed.sum_(z.sum(dim=0)) / count
        matrix = distributed.sum_(z.T @ z) / count
    if not matrix.isfinite().all():
        return torch.full((len(matrix),), math.nan, dtype=torch.float64)
    ascending: Tensor = torch.linalg.eigvalsh(matrix)
    return ascending.clamp(min=0).flip(0)


def effective_rank(spectrum: Tensor) -> float:
    """Exp of the entropy of the entries as shares of their sum, in 1..D. Source: Roy & Vetterli 2007.

    spectrum: (D,), not negative. NaN where an entry is NaN; 1 for zeros alone.
    """
    share = spectrum / spectrum.sum().clamp(min=torch.finfo(spectrum.dtype).tiny)
    return float(torch.special.entr(share).sum().exp())


@torch.no_grad()
def top_direction(z: Tensor) -> float:
    """Share of the variance along the direction that has most of it, lambda_1 / sum of lambda, in 1/D..1.

    1 when all images lie on a line, the last stage of what Jing et al. 2021 (arXiv 2110.09348) name dimensional
    collapse. RankMe does not show it: it counts square roots of variances, and many small ones add up. z: (B, D). NaN
    where z is not finite; 0 where nothing varies.
    """
    spectrum = eigenvalues(z, centred=True)
    return float(spectrum[0] / spectrum.sum().clamp(min=torch.finfo(spectrum.dtype).tiny))


@torch.no_grad()
def alpha_req(z: Tensor) -> float:
    """Decay of the covariance's spectrum: alpha of lambda_j ~ j^-alpha. Source: Agrawal et al. 2022, alpha-ReQ.

    Least squares of log lambda_j on log j, j from 5 to min(D / 2, 100), each weighted 1 / j so that every octave counts
    alike (Stringer et al. 2019, whose fit the authors use). Good features lie near 1 in the paper: a flat spectrum
    (alpha near 0) is full of noise, a steep one (2 and more) uses few directions. z: (B, D). NaN where fewer than three
    eigenvalues stand out from rounding, as after a collapse.
    """
    spectrum = eigenvalues(z, centred=True)
    last = min(max(len(spectrum) // 2, _FIRST + 2), _LAST, len(spectrum))
    values = spectrum[_FIRST - 1 : last]
    values = values[values > _NOISE * spectrum[0]]
    if len(values) < 3:
        return math.nan
    j = torch.arange(_FIRST, _FIRST + len(values), dtype=values.dtype, device=values.device)
    weight, x, y = 1 / j, j.log(), values.log()
    weight = weight / weight.sum()
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    return -float((weight * x * y).sum() / (weight * x * x).sum())


def float64(z: Tensor) -> Tensor:
    """In float64, where the device has that."""
    return z.to("cpu" if z.device.type == "mps" else z.device).to(torch.float64)
