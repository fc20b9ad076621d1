"""PCA whitening of rows that lie on many workers."""

import torch
from torch import Tensor

from ssl_ray import distributed

# Rows turned to float64 at a time: 256 MiB.
_CHUNK_ELEMENTS = 2**25
# Directions with less than this share of the largest variance hold rounding errors, which whitening would blow up.
_NEGLIGIBLE = 1e-10


@torch.no_grad()
def whiten(rows: Tensor, dim: int) -> Tensor:
    """Projections (n, d) on the d directions of largest variance, each with variance 1 over the rows of all ranks.

    rows: (n, D), this rank's. d is `dim`, or D where that is smaller. Mean and covariance are sums over ranks in
    float64: ranks exchange D x D numbers, never rows. A direction without variance gives zeros.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    width = rows.shape[1]
    sums = torch.zeros(width + 1, dtype=torch.float64, device=rows.device)
    sums[:width], sums[width] = rows.sum(0, dtype=torch.float64), len(rows)
    distributed.sum_(sums)
    mean, count = sums[:width] / sums[width], sums[width]
    parts = torch.split(rows, max(1, _CHUNK_ELEMENTS // width))
    covariance = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
    for part in parts:
        centred = part.double() - mean
        covariance += centred.T @ centred
    distributed.sum_(covariance)
    variances, directions = torch.linalg.eigh(covariance / count)  # ascending
    variances, directions = variances.flip(0)[:dim], directions.flip(1)[:, :dim]
    # An eigenvector has no sign of its own: its largest entry is made positive.
    largest = directions.abs().argmax(0, keepdim=True)
    directions = directions * directions.gather(0, largest).sign()
    kept = variances > _NEGLIGIBLE * variances[0]
    scale = torch.where(kept, variances.clamp(min=1e-300).rsqrt(), 0)
    projection = distributed.broadcast((directions * scale).contiguous()).to(rows.dtype)
    return torch.cat([(part - mean.to(rows.dtype)) @ projection for part in parts])
