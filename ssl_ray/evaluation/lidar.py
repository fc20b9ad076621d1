"""LiDAR: the rank of what tells images apart, when each is seen many times."""

import math

import torch
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.evaluation.spectrum import effective_rank, float64

_DELTA = 1e-4  # added to the within-image variances, as a share of the mean variance


@torch.no_grad()
def lidar(z: Tensor) -> float:
    """Effective rank of the LDA matrix, in 1..min(D, images - 1).

    Source: Thilak et al. 2023, arXiv 2312.04000, section 4. Each image is a class, its augmented views are the class's
    rows. With S_b the covariance of the images' means and S_w the mean covariance of views around them, plus delta I,
    the matrix is S_w^-1/2 S_b S_w^-1/2: a direction counts by how much more images differ along it than views of one
    image do. RankMe counts what augmentation does, too. The paper's delta is 1e-4; here it is that share of the mean
    variance, so that the scale of z does not matter.

    z: (n, V, D), this rank's n images; V, at least 2, is the same everywhere. D x D float64 is held three times. NaN
    where z is not finite.
    """
    z = float64(z)
    dim = z.shape[2]
    means = z.mean(dim=1)
    within = (z - means[:, None]).flatten(0, 1)
    count = distributed.sum_(torch.tensor(float(len(z)), device=z.device, dtype=z.dtype)).clamp(min=1)
    between = means - distributed.sum_(means.sum(dim=0)) / count
    s_b = distributed.sum_(between.T @ between) / count
    s_w = distributed.sum_(within.T @ within) / (count * z.shape[1])
    variance = (s_b.trace() + s_w.trace()) / dim
    if not variance.isfinite():
        return math.nan
    if variance == 0:
        return 1.0
    s_w.diagonal().add_(_DELTA * variance)
    # L^-1 S_b L^-T with S_w = L L^T has the eigenvalues of S_w^-1/2 S_b S_w^-1/2.
    root = torch.linalg.cholesky(s_w)
    half = torch.linalg.solve_triangular(root, s_b, upper=False)
    matrix = torch.linalg.solve_triangular(root, half.T, upper=False)
    return effective_rank(torch.linalg.eigvalsh((matrix + matrix.T) / 2).clamp(min=0))
