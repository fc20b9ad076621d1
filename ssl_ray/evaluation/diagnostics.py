"""Does the representation collapse? Answers that need no label.

An embedding collapses when all images map to nearly one point, or to few dimensions. The loss does not tell: for a
method without negatives it is at its lowest then. Rows (B, D) are this rank's share; results cover all ranks.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_ray import distributed

COLLAPSED = 0.05
"""Bound on `embedding_std` below which a trained projection counts as collapsed.

The ratio is at most sqrt(1 - c), c the mean cosine similarity of two images: 0.05 goes with c = 0.9975. Measured on
Fashion-MNIST: SimSiam's projection goes from 0.15 untrained to 0.9 in 20 steps. Without its stop-gradient it falls
below 0.04 in 250 steps, while the pooled backbone features still show 0.5, because batch norm restores their spread.
So the place to look at is the projection, where there is one; and not before the first epoch: an untrained ResNet-50,
its BN statistics still 0 and 1, shows 0.05 on photographs.
"""


@torch.no_grad()
def embedding_std(z: Tensor) -> float:
    """Spread of L2-normalised embeddings: the mean over dimensions of their std, times sqrt(D).

    Source: SimSiam, arXiv 2011.10566, sec. 4.1, which compares the std with 1 / sqrt(D), that of an isotropic
    Gaussian. Here 1 means isotropic, 0 that all rows are one point; Gaussian features after a ReLU reach 0.83, as their
    mean is not zero. z: (B, D), any scale.
    """
    z = F.normalize(z.float(), dim=1)
    count = distributed.sum_(torch.tensor(float(len(z)), device=z.device))
    mean = distributed.sum_(z.sum(dim=0)) / count
    variance = distributed.sum_((z - mean).square().sum(dim=0)) / count
    return float(variance.sqrt().mean() * math.sqrt(z.shape[1]))


@torch.no_grad()
def embedding_rank(z: Tensor) -> float:
    """RankMe, the effective rank of the embeddings, in 1..D. Source: Garrido et al. 2023, arXiv 2210.02885, eq. 1.

    exp of the entropy of the singular values of all rows, as shares of their sum. Finds the collapse to few dimensions,
    which the std hardly shows. z: (B, D), not normalised; NaN where z is not finite.
    """
    # Singular values are roots of the eigenvalues of Z^T Z, which is a sum over rows and so over ranks. The squares
    # need float64, which Apple's accelerators do not have.
    z = z.to("cpu" if z.device.type == "mps" else z.device).to(torch.float64)
    gram = distributed.sum_(z.T @ z)
    if not gram.isfinite().all():
        return math.nan
    share = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
    return float(torch.special.entr(share).sum().exp())


def collapse_message(std: float, dim: int, bound: float = COLLAPSED) -> str | None:
    """A line for the user when `embedding_std` of embeddings (B, dim) is below the bound or NaN, else None."""
    if std >= bound:
        return None
    return (
        f"the representation collapses: std per dimension {std / math.sqrt(dim):.2g}, healthy is about "
        f"{1 / math.sqrt(dim):.2g} (ratio {std:.2g}, bound {bound:g}); the images are hardly told apart. Lower the lr, "
        "use stronger augmentation, or check predictor, stop-gradient and BN"
    )
