"""RotationPred (Gidaris et al. 2018, arXiv 1803.07728)."""

import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.base import BaseModel, Output, Samples, Views
from ssl_ray.models.heads.cls_head import ClsHead, ClsPrediction

QUARTER_TURNS = 4


class RotationPred(BaseModel):
    """By how much was an image turned: 0, 90, 180 or 270 degrees? (eq. 1 and 2, with K = 4).

    All four copies of an image are in the batch, image by image, and class k is k quarter turns. Turning moves pixels
    and interpolates nothing, so no artefact gives the class away.

    Views are one square view, turned here on its device, or four that are turned already, in the order of the classes.

    Args:
        head: a ClsHead with 4 classes.
        clockwise: class 1 is a quarter turn to the right, as in MMSelfSup 1.x; to the left in the authors' code and in
            MMSelfSup 0.x. It matters only for a head that was trained elsewhere.
        decay_norms: weight decay acts on biases and norms, too, as in the official code.
    """

    head: ClsHead

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        clockwise: bool = False,
        decay_norms: bool = True,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, None, head, pretrained, data_preprocessor)
        if getattr(head, "num_classes", QUARTER_TURNS) < QUARTER_TURNS:
            raise UserError(
                f"RotationPred: head.num_classes {head.num_classes} is less than the {QUARTER_TURNS} turns there are"
            )
        self.decay_norms = decay_norms
        self.clockwise = clockwise

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """The backbone's maps of view 0, as it comes."""
        maps: tuple[Tensor, ...] = self.backbone(views[0])
        return maps

    def loss(self, views: Views, samples: Samples) -> Output:
        """Cross-entropy over the 4B turned images."""
        images = self._turned(views)
        target = torch.arange(QUARTER_TURNS, device=images.device).repeat(len(images) // QUARTER_TURNS)
        logits = self.head.logits(self.backbone(images))
        return Output(
            self.head.loss(logits, target), metrics={"rotation_top1": self.head.accuracy(logits, target)}
        )

    def predict(self, views: Views, samples: Samples) -> ClsPrediction:
        """For each image and turn (B, 4) the class, and the probability of each class (B, 4, 4)."""
        answer = self.head.predict(self.backbone(self._turned(views)))
        return ClsPrediction(*(x.view(-1, QUARTER_TURNS, *x.shape[1:]) for x in answer))

    def _turned(self, views: Views) -> Tensor:
        """(4B, C, H, W): image by image, in the order of the classes."""
        if len(views) == 1:
            direction = -1 if self.clockwise else 1
            views = [views[0].rot90(direction * k, (2, 3)) for k in range(QUARTER_TURNS)]
        if len(views) != QUARTER_TURNS:
            raise UserError(
                f"RotationPred: {len(views)} views; give one, or the {QUARTER_TURNS} turned ones (views=rotation_views)"
            )
        return torch.stack(views, dim=1).flatten(0, 1)
