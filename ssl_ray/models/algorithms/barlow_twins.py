"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230)."""

from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.base import BaseModel, Output, ParamGroup, Samples, Views
from ssl_ray.models.heads.latent_cross_correlation_head import LatentCrossCorrelationHead
from ssl_ray.ranges import NotNegative


class BarlowTwins(BaseModel):
    """Each feature of one view should agree with itself in the other view, and with no other feature.

    The cross-correlation matrix of the two views' projections, over the global batch, is pulled to the identity: no
    negatives, no teacher, no predictor. The neck is a NonLinearNeck of three layers without batch norm after the last.

    Args:
        backbone, neck: the encoder.
        head: called with the projections of both views, (B, D) each.
        bias_lr_scale: factor of the learning rate for biases and norms; 0.024 is the 0.0048 / 0.2 of the official LARS.
            Optimisers without a trust ratio (SGD, AdamW) want 1.
    """

    num_views = 2
    neck: nn.Module
    head: LatentCrossCorrelationHead

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        bias_lr_scale: NotNegative = 0.024,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        dim = getattr(neck, "out_channels", None)
        if isinstance(head, LatentCrossCorrelationHead) and dim not in (None, head.bn.num_features):
            raise UserError(
                f"BarlowTwins: head.in_channels {head.bn.num_features} is not the length of the neck's output; "
                f"set it to neck.out_channels, {dim}"
            )
        self.bias_lr_scale = bias_lr_scale

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """The backbone's maps of view 0."""
        maps: tuple[Tensor, ...] = self.backbone(views[0])
        return maps

    def loss(self, views: Views, samples: Samples) -> Output:
        """Distance from the identity of the cross-correlation between views 0 and 1."""
        first, second = (self.neck(self.backbone(view)) for view in views[:2])
        return Output(self.head(first, second))

    def predict(self, views: Views, samples: Samples) -> Tensor:
        """Embedding (B, D): the projection of view 0."""
        projection: Tensor = self.neck(self.backbone(views[0]))
        return projection

    def param_groups(self) -> list[ParamGroup]:
        """Weights, and biases and norms with a learning rate of their own (see `bias_lr_scale`)."""
        weights, rest = super().param_groups()
        rest.lr_scale = self.bias_lr_scale
        return [weights, rest]
