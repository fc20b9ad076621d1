"""SimCLR (Chen et al. 2020, arXiv 2002.05709)."""

import torch
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.models.base import BaseModel, Output, Samples, Views
from ssl_ray.models.heads.contrastive_head import ContrastiveHead


class SimCLR(BaseModel):
    """Two views of an image attract, all other views in the global batch repel (NT-Xent, eq. 1).

    Each of the 2B local rows has one positive and 2N - 2 negatives, N the global batch: the rows of all ranks, with
    gradient. The loss is the mean over local rows; the mean over ranks is the loss of the global batch. Both views
    pass the backbone as one batch, so BN sees both; on several workers use SyncBN.

    Args:
        backbone, neck: the encoder.
        head: called with similarities pos (2B, 1) and neg (2B, 2N), where a row's own column and its positive's
            are -inf; has `accuracy(pos, neg)`.
    """

    num_views = 2
    min_rows = 2  # one image has no negatives
    neck: nn.Module
    head: ContrastiveHead

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: ContrastiveHead,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """The backbone's maps of view 0."""
        maps: tuple[Tensor, ...] = self.backbone(views[0])
        return maps

    def loss(self, views: Views, samples: Samples) -> Output:
        """NT-Xent of views 0 and 1 over the global batch."""
        images = torch.stack([views[0], views[1]], dim=1).flatten(0, 1)  # a0, b0, a1, b1, ...
        z = _unit(self._project(images))
        with torch.autocast(images.device.type, enabled=False):
            pairs = distributed.gather_with_grad(z.view(-1, 2, z.shape[1]))  # (N, 2, D)
            similarity = z @ pairs.flatten(0, 1).T  # (2B, 2N)
            rows = torch.arange(len(pairs) * 2, device=z.device).view(-1, 2)
            own = distributed.local_rows(rows).flatten().unsqueeze(1)  # (2B, 1): each row's own column
            partner = own ^ 1
            pos = similarity.gather(1, partner)
            neg = similarity.scatter(1, torch.cat([own, partner], dim=1), -torch.inf)
            loss = self.head(pos, neg)
        return Output(loss, metrics={"contrast_top1": self.head.accuracy(pos, neg)})

    def predict(self, views: Views, samples: Samples) -> Tensor:
        """Embedding (B, D): the projection of view 0, of unit length."""
        return _unit(self._project(views[0]))

    def _project(self, images: Tensor) -> Tensor:
        projection: Tensor = self.neck(self.backbone(images))
        return projection


def _unit(x: Tensor) -> Tensor:
    """Rows divided by (length + 1e-10), in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    unit: Tensor = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)
    return unit
