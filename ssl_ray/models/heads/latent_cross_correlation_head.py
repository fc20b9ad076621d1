"""The cross-correlation between two views' embeddings over the global batch."""

import torch
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.models.losses.cross_correlation_loss import CrossCorrelationLoss
from ssl_ray.models.sync_batch_norm import SyncBatchNorm
from ssl_ray.ranges import Channels


class LatentCrossCorrelationHead(nn.Module):
    """Standardises every feature over the batch and correlates those of one view with those of the other (Zbontar et
    al. 2021, arXiv 2103.03230, eq. 2).

    Mean and deviation are always those of the rows of all workers, and so is the matrix: correlations within a worker's
    rows, summed, would be another loss. Each worker gets the loss of the global batch, and its gradient.

    Args:
        in_channels: length D of an embedding.
        loss: called with the matrix (D, D); CrossCorrelationLoss() when None.
    """

    min_rows = 2  # of one image no feature has a deviation

    def __init__(self, in_channels: Channels, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.bn = SyncBatchNorm(in_channels, affine=False)
        self.loss = loss or CrossCorrelationLoss()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Scalar loss of the embeddings of two views, (B, D) each."""
        loss: Tensor = self.loss(self.correlation(first, second))
        return loss

    def correlation(self, first: Tensor, second: Tensor) -> Tensor:
        """C (D, D) in float32 at least: C_ij correlates feature i of `first` with feature j of `second`."""
        with torch.autocast(first.device.type, enabled=False):
            a, b = (self.bn(z.to(torch.promote_types(z.dtype, torch.float32))) for z in (first, second))
            rows = len(first) * distributed.world_size()
            return distributed.sum_with_grad(a.T @ b) / rows
