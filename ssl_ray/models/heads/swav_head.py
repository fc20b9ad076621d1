"""SwAVHead: prototypes, the centres of clusters that the network learns along with its features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.models.losses.swav_loss import SwAVLoss
from ssl_ray.ranges import Channels, Classes


class SwAVHead(nn.Module):
    """Unit prototypes and the loss on the scores that embeddings get from them (arXiv 2006.09882, section 3.1).

    Args:
        in_channels: length of an embedding.
        num_prototypes: of clusters.
        loss: called with scores (B, V, K) and what `forward` says about the queue; SwAVLoss() when None.
    """

    def __init__(
        self, in_channels: Channels, num_prototypes: Classes = 3000, loss: SwAVLoss | None = None
    ) -> None:
        super().__init__()
        self.prototypes = nn.Linear(in_channels, num_prototypes, bias=False)
        self.normalize_prototypes()
        self.loss = loss or SwAVLoss()

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Sets every prototype to unit length, in place. To be called between backward pass and optimiser step."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def scores(self, z: Tensor) -> Tensor:
        """Similarities (..., K) of embeddings z (..., in_channels) with the prototypes at unit length.

        The gradient is the one of the unit prototypes: scaling them is a projection after each step, no part of the
        function (as in the official code, which scales them in place before each forward pass).
        """
        weight = self.prototypes.weight
        unit = weight + (F.normalize(weight, dim=1) - weight).detach()
        return F.linear(z, unit)

    def forward(
        self, scores: Tensor, queued: Tensor | None = None, use_queue: Tensor | None = None
    ) -> Tensor:
        """Scalar loss of scores (B, V, K); queued (L, A, K) and use_queue as in SwAVLoss."""
        loss: Tensor = self.loss(scores, queued, use_queue)
        return loss

    @torch.no_grad()
    def agreement(self, scores: Tensor) -> Tensor:
        """Share of the other crops (B, 1:V) whose nearest prototype is that of crop 0."""
        nearest = scores.argmax(2)
        return (nearest[:, 1:] == nearest[:, :1]).float().mean()
