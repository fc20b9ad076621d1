"""SwAVLoss: the cluster of one crop, predicted from all others."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.losses.sinkhorn import sinkhorn
from ssl_ray.ranges import Natural, Positive


class SwAVLoss(nn.Module):
    """Cross-entropy between a crop's code and the prediction of every other crop (Caron et al. 2020, arXiv 2006.09882,
    eq. 1-2 and 6).

    Codes come from `sinkhorn` over the scores of all ranks and carry no gradient. The mean over a rank's rows; the mean
    over ranks is the loss of the global batch. Computed in float32 at least.

    Args:
        temperature: divides the scores that predict.
        epsilon, sinkhorn_iterations: see `sinkhorn`.
        crops_for_assign: views whose codes are predicted; the large ones.
    """

    min_rows = 2  # of one image all prototypes get the same share

    def __init__(
        self,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        sinkhorn_iterations: Annotated[int, Field(gt=0, le=1000)] = 3,
        crops_for_assign: Annotated[Sequence[Natural], Field(min_length=1)] = (0, 1),
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.epsilon = epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.crops_for_assign = tuple(crops_for_assign)

    def forward(
        self, scores: Tensor, queued: Tensor | None = None, use_queue: Tensor | None = None
    ) -> Tensor:
        """Scalar loss. scores: (B, V, K) of V crops and K prototypes.

        queued: (L, A, K) scores of earlier embeddings of the A crops for assignment, which help to share the
        prototypes out; use_queue: whether they do, a bool scalar on the device, True where not given. Raises
        UserError if there are not enough crops.
        """
        crops = scores.shape[1]
        if crops < 2 or max(self.crops_for_assign) >= crops:
            raise UserError(
                f"crops_for_assign: {self.crops_for_assign} of {crops} views; give at least two views, and views from 0"
            )
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        codes = self.codes(scores.detach(), queued, use_queue)
        log_p = (scores / self.temperature).log_softmax(2)
        of_all = log_p.sum(1)
        terms = [
            -(codes[:, i] * (of_all - log_p[:, crop])).sum(1).mean()
            for i, crop in enumerate(self.crops_for_assign)
        ]
        return torch.stack(terms).mean() / (crops - 1)

    @torch.no_grad()
    def codes(self, scores: Tensor, queued: Tensor | None = None, use_queue: Tensor | None = None) -> Tensor:
        """Codes (B, A, K) of the crops for assignment. Arguments as in `forward`."""
        assigned, counted = scores[:, list(self.crops_for_assign)], None
        rows = assigned
        if queued is not None:
            rows = torch.cat([queued.to(assigned.dtype), assigned])
            if use_queue is not None:
                # A mask and no `if`: the device need not be waited for.
                every = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
                counted = torch.cat([every[: len(queued)] & use_queue, every[len(queued) :]])
        return sinkhorn(rows, self.epsilon, self.sinkhorn_iterations, counted)[-len(assigned) :]
