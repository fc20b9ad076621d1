"""Soft cluster assignments in which every cluster gets an equal share: the Sinkhorn-Knopp algorithm."""

import torch
from torch import Tensor

from ssl_ray import distributed


@torch.no_grad()
def sinkhorn(
    scores: Tensor, epsilon: float = 0.05, iterations: int = 3, counted: Tensor | None = None
) -> Tensor:
    """Codes (N, ..., K), each of sum 1, of this rank's rows; prototypes share the rows of all ranks equally.

    Source: SwAV, arXiv 2006.09882, eq. 3-5: exp(scores / epsilon) whose columns and rows are scaled in turn. Here on
    the logarithm, where nothing overflows, in float32 at least. The scale of the whole matrix cancels, so that ranks
    may hold different numbers of rows and the axes between (N, ..., K) are problems of their own.

    scores: (N, ..., K) similarities of rows and prototypes. counted: (N,) bool, False for rows that take no share of
    the prototypes. epsilon: the smaller, the closer to one prototype per row.
    """
    log_q = scores.to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    for _ in range(iterations):
        sharing = log_q
        if counted is not None:
            sharing = log_q.masked_fill(~counted.view(-1, *[1] * (log_q.dim() - 1)), -torch.inf)
        of_ranks = distributed.gather(sharing.logsumexp(0, keepdim=True))  # (W, ..., K)
        log_q = log_q - of_ranks.logsumexp(0)
        log_q = log_q - log_q.logsumexp(-1, keepdim=True)
    return log_q.exp()
