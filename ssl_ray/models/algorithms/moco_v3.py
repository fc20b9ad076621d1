"""MoCo v3 (Chen, Xie and He 2021, arXiv 2104.02057)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.models.base import BaseModel, Output, Progress, Samples, Views
from ssl_ray.models.heads.moco_v3_head import MoCoV3Head
from ssl_ray.models.teacher import Teacher, cosine_momentum
from ssl_ray.ranges import Fraction


class MoCoV3(BaseModel):
    """A predicted query must find its key, made by a momentum encoder, among the keys of the global batch (alg. 1).

    loss = head(z0, k1) + head(z1, k0): z of the network that learns, k of the teacher, which has backbone and neck but
    no predictor. There is no queue. The teacher moves after the optimiser step, so keys are always made with the newest
    average.

    Args:
        backbone, neck: the encoder; a MoCoV3ViT with NonLinearNeck(with_avg_pool=False), which takes the class token,
            or a ResNet.
        head: called with projections and the teacher's of the other view, (B, D) each; holds the predictor.
        momentum: weight of the old average in the teacher at the first step; from there half a cosine to 1.
        decay_norms: weight decay acts on biases and norms, too: so does the official code for ViTs, not for ResNets.
    """

    num_views = 2
    neck: nn.Module
    head: MoCoV3Head

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: MoCoV3Head,
        momentum: Fraction = 0.99,
        decay_norms: bool = False,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        self.teacher = Teacher(backbone, neck)
        self.momentum = momentum
        self.decay_norms = decay_norms

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """What the backbone makes of view 0: a ResNet's maps, a ViT's map of patches and class token."""
        features: tuple[Tensor, ...] = self.backbone(views[0])
        return features

    def loss(self, views: Views, samples: Samples) -> Output:
        """Both views in both roles; each passes on its own, so that batch norm never mixes them."""
        z0, z1 = self._project(views[0]), self._project(views[1])
        k0, k1 = self.teacher(views[0]), self.teacher(views[1])
        return Output(self.head(z0, k1) + self.head(z1, k0))

    def predict(self, views: Views, samples: Samples) -> Tensor:
        """Embedding (B, D): the projection of view 0, of unit length."""
        return F.normalize(self._project(views[0]), dim=1)

    def after_step(self, state: dict[str, Tensor], progress: Progress) -> None:
        """Moves the teacher."""
        self.teacher.update(self.backbone, self.neck, cosine_momentum(self.momentum, progress))

    def _project(self, images: Tensor) -> Tensor:
        projection: Tensor = self.neck(self.backbone(images))
        return projection
