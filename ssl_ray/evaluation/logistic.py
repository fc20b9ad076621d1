"""Multinomial logistic regression by L-BFGS, on rows that may be spread over ranks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.eager import spare_compiler

_CHUNK_ELEMENTS = 2**25  # logits held at a time (256 MiB in float64)


@torch.no_grad()
def fit_logistic(
    rows: Tensor,
    labels: Tensor,
    classes: int,
    penalty: float,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    iterations: int = 1000,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Weight (D, K) and bias (K,) that minimise the mean cross entropy plus penalty / 2 |W|^2; the bias is free.

    rows: (n, D) of this rank, in whose dtype all is computed; labels: (n,) int64 in 0..K-1. Every rank gets the same,
    from sums over all of them. start: where to begin, else at 0. tolerance: of the gradient's largest entry.
    """
    parameters = rows.new_zeros(rows.shape[1] + 1, classes)
    if start:
        parameters = torch.cat([start[0], start[1][None]]).to(rows)
    count = distributed.sum_(torch.tensor(len(rows), device=rows.device))
    chunk = max(1, _CHUNK_ELEMENTS // classes)
    pieces = list(zip(torch.split(rows, chunk), torch.split(labels, chunk), strict=True))
    spare_compiler()
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-10,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss_and_gradient() -> Tensor:
        # By hand: a graph would hold the logits of all rows at once.
        weight, bias = parameters[:-1], parameters[-1]
        gradient, loss = torch.zeros_like(parameters), rows.new_zeros(())
        for part, target in pieces:
            log_p = F.log_softmax(part @ weight + bias, dim=1)
            loss += F.nll_loss(log_p, target, reduction="sum")
            error = log_p.exp_()
            error[torch.arange(len(target), device=target.device), target] -= 1
            gradient[:-1] += part.T @ error
            gradient[-1] += error.sum(dim=0)
        distributed.sum_(loss)
        distributed.sum_(gradient)
        gradient /= count
        gradient[:-1] += penalty * weight
        parameters.grad = gradient
        return loss / count + penalty / 2 * weight.square().sum()

    optimizer.step(loss_and_gradient)  # type: ignore[no-untyped-call]
    return parameters[:-1], parameters[-1]
