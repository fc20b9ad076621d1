"""SimSiam (Chen and He 2020, arXiv 2011.10566)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.models.base import BaseModel, Output, ParamGroup, Samples, Views, apart
from ssl_ray.models.heads.latent_predict_head import LatentPredictHead


class SimSiam(BaseModel):
    """From one view's projection, the head's predictor foretells the other's, which passes no gradient (eq. 4).

    loss = (head(z0, z1) + head(z1, z0)) / 2. No negatives and no teacher: predictor and stop-gradient alone keep the
    network from collapse, so watch the spread of `predict`.

    Args:
        backbone, neck: the encoder.
        head: called with two projections (B, D), of which the second is the target; holds the predictor.
        fix_predictor_lr: the predictor keeps the peak lr while the others' decays (section 4.2: it should go on
            adapting to the newest representation).
        decay_norms: weight decay acts on biases and norms, too, as in the official code.
    """

    num_views = 2
    neck: nn.Module
    head: LatentPredictHead

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: LatentPredictHead,
        fix_predictor_lr: bool = True,
        decay_norms: bool = True,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        self.fix_predictor_lr = fix_predictor_lr
        self.decay_norms = decay_norms

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """The backbone's maps of view 0."""
        maps: tuple[Tensor, ...] = self.backbone(views[0])
        return maps

    def loss(self, views: Views, samples: Samples) -> Output:
        """Both views in both roles; each passes on its own, so that batch norm never mixes them."""
        z0, z1 = self._project(views[0]), self._project(views[1])
        return Output((self.head(z0, z1) + self.head(z1, z0)) / 2)

    def predict(self, views: Views, samples: Samples) -> Tensor:
        """Embedding (B, D): the projection of view 0, of unit length."""
        return F.normalize(self._project(views[0]), dim=1)

    def param_groups(self) -> list[ParamGroup]:
        """As every model's, with the predictor apart (see `fix_predictor_lr`)."""
        encoder, predictor = apart(
            super().param_groups(), self.head.predictor, fixed_lr=self.fix_predictor_lr
        )
        return encoder + predictor

    def _project(self, images: Tensor) -> Tensor:
        projection: Tensor = self.neck(self.backbone(images))
        return projection
