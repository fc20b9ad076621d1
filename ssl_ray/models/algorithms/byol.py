"""BYOL (Grill et al. 2020, arXiv 2006.07733)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.models.base import BaseModel, Output, Progress, Samples, Views
from ssl_ray.models.heads.latent_predict_head import LatentPredictHead
from ssl_ray.models.teacher import Teacher, cosine_momentum
from ssl_ray.ranges import Fraction


class BYOL(BaseModel):
    """From one view's projection, the head's predictor foretells what a slow average of the network makes of the other.

    loss = 2 (head(z0, t1) + head(z1, t0)): z of the network that learns, t of the teacher, which has backbone and neck
    but no predictor. There are no negatives; predictor, stop-gradient and average keep the network from collapse. The
    teacher moves after the optimiser step, as in the official code (MMSelfSup: before the next step's targets).

    Args:
        backbone, neck: the encoder.
        head: called with a projection and the teacher's of the other view, (B, D) each; holds the predictor.
        momentum: weight of the old average in the teacher at the first step; from there half a cosine to 1.
    """

    num_views = 2
    neck: nn.Module
    head: LatentPredictHead

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: LatentPredictHead,
        momentum: Fraction = 0.996,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        self.teacher = Teacher(backbone, neck)
        self.momentum = momentum

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """The backbone's maps of view 0."""
        maps: tuple[Tensor, ...] = self.backbone(views[0])
        return maps

    def loss(self, views: Views, samples: Samples) -> Output:
        """Both views in both roles; each passes on its own, so that batch norm never mixes them."""
        z0, z1 = self._project(views[0]), self._project(views[1])
        t0, t1 = self.teacher(views[0]), self.teacher(views[1])
        return Output(2 * (self.head(z0, t1) + self.head(z1, t0)))

    def predict(self, views: Views, samples: Samples) -> Tensor:
        """Embedding (B, D): the projection of view 0, of unit length."""
        return F.normalize(self._project(views[0]), dim=1)

    def after_step(self, state: dict[str, Tensor], progress: Progress) -> None:
        """Moves the teacher."""
        self.teacher.update(self.backbone, self.neck, cosine_momentum(self.momentum, progress))

    def _project(self, images: Tensor) -> Tensor:
        projection: Tensor = self.neck(self.backbone(images))
        return projection
