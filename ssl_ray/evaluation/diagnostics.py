"""Does the representation collapse? Answers that need no label.

An embedding collapses when all images map to nearly one point, or to few dimensions. The loss does not tell: for a
method without negatives it is at its lowest then. Rows (B, D) are this rank's share; results cover all ranks.
"""

import math

import torch
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.evaluation.spectrum import effective_rank, eigenvalues
from ssl_ray.evaluation.unit import unit


@torch.no_grad()
def embedding_std(z: Tensor) -> float:
    """Spread of L2-normalised embeddings: the mean over dimensions of their std, times sqrt(D).

    Source: SimSiam, arXiv 2011.10566, sec. 4.1, which compares the std with 1 / sqrt(D), that of an isotropic
    Gaussian. Here 1 means isotropic, 0 that all rows are one point; Gaussian features after a ReLU reach 0.83, as their
    mean is not zero. z: (B, D), any scale. NaN where z is not finite.
    """
    z = unit(z)
    count = distributed.sum_(torch.tensor(float(len(z)), device=z.device))
    mean = distributed.sum_(z.sum(dim=0)) / count
    variance = distributed.sum_((z - mean).square().sum(dim=0)) / count
    return float(variance.sqrt().mean() * math.sqrt(z.shape[1]))


@torch.no_grad()
def embedding_rank(z: Tensor) -> float:
    """RankMe, the effective rank of the embeddings, in 1..D. Source: Garrido et al. 2023, arXiv 2210.02885, eq. 1.

    exp of the entropy of the singular values of all rows, as shares of their sum. Finds the collapse to few dimensions,
    which the std hardly shows. z: (B, D), not normalised; with more than `spectrum.WIDE` dimensions so many rows
    count. NaN where z is not finite.
    """
    return effective_rank(eigenvalues(z, centred=False).sqrt())
