"""CrossCorrelationLoss: how far a cross-correlation matrix is from the identity."""

import torch
from torch import Tensor, nn

from ssl_ray.ranges import NotNegative


class CrossCorrelationLoss(nn.Module):
    """sum_i (C_ii - 1)^2 + lambd * sum_{i != j} C_ij^2 (Zbontar et al. 2021, arXiv 2103.03230, eq. 1).

    Both are sums, so that the weight of the second grows with the number of features: 0.0051 belongs to 8192. Computed
    in float32 at least.

    Args:
        lambd: weight of redundancy against invariance.
    """

    def __init__(self, lambd: NotNegative = 0.0051) -> None:
        super().__init__()
        self.lambd = lambd

    def forward(self, correlation: Tensor) -> Tensor:
        """Scalar, from the cross-correlation matrix (D, D) of two views."""
        correlation = correlation.to(torch.promote_types(correlation.dtype, torch.float32))
        invariance = (correlation.diagonal() - 1).square().sum()
        redundancy = correlation.square().fill_diagonal_(0).sum()
        return invariance + self.lambd * redundancy
