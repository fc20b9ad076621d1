"""RelativeLoc (Doersch et al. 2015, arXiv 1505.05192)."""

import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.base import BaseModel, Output, ParamGroup, Samples, Views, apart
from ssl_ray.models.dropout import dropout_scale
from ssl_ray.models.heads.cls_head import ClsHead, ClsPrediction
from ssl_ray.models.necks.relative_loc_neck import RelativeLocNeck
from ssl_ray.ranges import NotNegative


class RelativeLoc(BaseModel):
    """Where does one patch of an image lie, seen from the patch in the centre?

    Views are patches: the centre, then the neighbours in the order of the classes (eight in the paper). One backbone
    sees both patches of a pair; the channels of their maps, the neighbour's first, go through neck and head together.
    Neighbours pass the backbone as one batch, centres as another, so each kind has its own BN statistics.

    Args:
        neck: a RelativeLocNeck.
        head: a ClsHead with a class per neighbour.
        repeat_center: the centre passes the backbone once per neighbour, as in MMSelfSup, instead of once per image.
            Loss and gradients are the same for 1.8 times the work; BN's running variances differ, because the
            unbiased estimate takes repeated rows for new ones.
        decay_factor: weight decay of neck and head, as a multiple of the backbone's.
        decay_norms: weight decay acts on biases and norms, too, as in the official code.

    Reads `samples["dropout_scale"]` (B, neighbours, neck.out_channels), 0 or 1 / (1 - neck.dropout), where given; else
    draws it.
    """

    neck: RelativeLocNeck
    head: ClsHead

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        repeat_center: bool = False,
        decay_factor: NotNegative = 1.0,
        decay_norms: bool = True,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        self.decay_norms = decay_norms
        self.repeat_center = repeat_center
        self.decay_factor = decay_factor

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """The backbone's maps of view 0."""
        maps: tuple[Tensor, ...] = self.backbone(views[0])
        return maps

    def loss(self, views: Views, samples: Samples) -> Output:
        """Cross-entropy over all pairs of a centre and a neighbour."""
        pairs = self._pairs(views, samples)
        target = torch.arange(self.head.num_classes, device=pairs.device).repeat(len(views[0]))
        logits = self.head.logits(pairs)
        return Output(
            self.head.loss(logits, target), metrics={"location_top1": self.head.accuracy(logits, target)}
        )

    def predict(self, views: Views, samples: Samples) -> ClsPrediction:
        """For each image and neighbour (B, 8) the class, and the probability of each class (B, 8, 8)."""
        answer = self.head.predict(self._pairs(views, samples))
        return ClsPrediction(*(x.view(-1, self.head.num_classes, *x.shape[1:]) for x in answer))

    def param_groups(self) -> list[ParamGroup]:
        """As every model's, with neck and head apart (see `decay_factor`)."""
        ours, backbone = apart(super().param_groups(), self.backbone)
        for group in ours:
            group.weight_decay *= self.decay_factor
        return backbone + ours

    def _pairs(self, views: Views, samples: Samples) -> Tensor:
        """The neck's output (B * neighbours, D), image by image."""
        neighbours = self.head.num_classes
        if len(views) != 1 + neighbours:
            raise UserError(
                f"RelativeLoc: {len(views)} views for a head of {neighbours} classes; give the centre and "
                f"{neighbours} neighbours (views=relative_loc_views)"
            )
        around = self.backbone(torch.stack(views[1:], dim=1).flatten(0, 1))[-1]
        if self.repeat_center:
            center = self.backbone(views[0].repeat_interleave(neighbours, dim=0))[-1]
        else:
            center = self.backbone(views[0])[-1].repeat_interleave(neighbours, dim=0)
        scale = self._dropout_scale(len(views[0]), samples, around.device)
        pairs: Tensor = self.neck((torch.cat([around, center], dim=1),), scale)
        return pairs

    def _dropout_scale(self, rows: int, samples: Samples, device: torch.device) -> Tensor | None:
        """(rows * neighbours, D), None where nothing is dropped."""
        if not self.training or self.neck.dropout == 0:
            return None
        scale = samples.get("dropout_scale")
        if scale is None:
            shape = (self.head.num_classes, self.neck.out_channels)
            scale = dropout_scale(rows, shape, self.neck.dropout, device)
        return scale.flatten(0, 1)
