"""The head of MoCo v3: a predicted query must find its key among those of the whole batch."""

import torch
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.models.losses.cross_entropy_loss import CrossEntropyLoss
from ssl_ray.models.unit import unit
from ssl_ray.ranges import Positive


class MoCoV3Head(nn.Module):
    """InfoNCE of predicted queries against the keys of the global batch (Chen et al. 2021, arXiv 2104.02057, alg. 1).

    Args:
        predictor: called with a tuple of one (B, D), as a neck is; a NonLinearNeck(with_avg_pool=False).
        temperature: divides the similarities.
        loss: called with logits (B, N) and target (B,); CrossEntropyLoss(loss_weight=2 * temperature) when None: the
            paper's factor, with which a rate fits other temperatures, too.
    """

    min_rows = 2  # one image has no negatives

    def __init__(
        self, predictor: nn.Module, temperature: Positive = 1.0, loss: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.temperature = temperature
        self.loss = loss or CrossEntropyLoss(loss_weight=2 * temperature)

    def forward(self, projection: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of this rank's rows. projection, target: (B, D); no gradient goes to the target."""
        query = self.predictor((projection,))
        with torch.autocast(query.device.type, enabled=False):
            keys = distributed.gather(unit(target))  # (N, D)
            logits = unit(query) @ keys.T / self.temperature
            own = distributed.local_rows(torch.arange(len(keys), device=keys.device))
            loss: Tensor = self.loss(logits, own)
        return loss
