"""A pretrained backbone and a linear classifier, trained together on labels: fine-tuning."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.base import BaseModel, Output, ParamGroup, Samples, Views
from ssl_ray.models.encoder import pooled
from ssl_ray.models.heads.cls_head import ClsHead, ClsPrediction
from ssl_ray.models.layers import layers
from ssl_ray.ranges import Positive, Share

# Weights by their number of axes, but not decayed where these networks were published.
_UNDECAYED = ("cls_token", "pos_embed", "relative_position_bias_table")


class Classifier(BaseModel):
    """Backbone and head, trained end to end with labels.

    Not a pretraining: it reads `samples["label"]` (B,) int64. Where `samples["mixing"]` (B, 5) is given (see
    `data.mixing.Mixing`), an image is mixed with the one half a batch further on, and so are their labels; that pairs
    the same images on any number of workers, as long as a worker's share of the batch is even.

    Args:
        head: a ClsHead on the backbone's pooled features.
        layer_decay: the lr of layer i is multiplied by layer_decay^(L - i), L being the head (BEiT, arXiv 2106.08254;
            MAE); 1 treats all layers alike. See `models.layers`.
        head_lr_scale: the head's lr as a multiple of the backbone's; SimCLR's and BYOL's semi-supervised protocols
            search it, for the head alone is new.
        decay_norms: weight decay acts on biases and norms, too.
    """

    needs_labels = True
    head: ClsHead

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        layer_decay: Share = 1.0,
        head_lr_scale: Positive = 1.0,
        decay_norms: bool = False,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, None, head, pretrained, data_preprocessor)
        if not 0 < layer_decay <= 1 or head_lr_scale <= 0:
            raise UserError(
                f"layer_decay {layer_decay:g}, head_lr_scale {head_lr_scale:g}: layer_decay lies above 0 and at most "
                "at 1, head_lr_scale above 0"
            )
        self.layer_decay = layer_decay
        self.head_lr_scale = head_lr_scale
        self.decay_norms = decay_norms
        for name, parameter in backbone.named_parameters():
            if name.endswith("mask_token"):  # stands for what was hidden, and nothing is hidden here
                parameter.requires_grad_(False)

    def extract_feat(self, views: Views) -> Tensor:
        """Pooled features (B, D) of view 0."""
        return pooled(self.backbone, views[0])

    def loss(self, views: Views, samples: Samples) -> Output:
        """The head's loss; metric `top1`: right answers, by each image's own label even where it is mixed."""
        if "label" not in samples:
            raise UserError(f"Classifier: samples hold no 'label', only {sorted(samples)}")
        images, target = views[0], samples["label"]
        if "mixing" in samples:
            one_hot = F.one_hot(target, self.head.num_classes).to(images.dtype)
            images, target = mix(images, one_hot, samples["mixing"])
        logits = self.head.logits(self.extract_feat([images]))
        return Output(
            self.head.loss(logits, target), metrics={"top1": self.head.accuracy(logits, samples["label"])}
        )

    def predict(self, views: Views, samples: Samples) -> ClsPrediction:
        """The class of each image (B,), and the probability of every class (B, num_classes)."""
        return self.head.predict(self.extract_feat(views))

    def param_groups(self) -> list[ParamGroup]:
        """A group for each layer and weight decay; the head's are the last."""
        of, top = layers(self.backbone) if self.layer_decay != 1 else ((lambda name: 0), 0)
        groups: dict[tuple[bool, int, bool], ParamGroup] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            of_head = not name.startswith("backbone.")
            layer = top if of_head else of(name.removeprefix("backbone."))
            weight = parameter.ndim > 1 and not name.endswith(_UNDECAYED)
            group = groups.setdefault(
                (of_head, layer, weight),
                ParamGroup(
                    [],
                    weight_decay=1.0 if weight else float(self.decay_norms),
                    lr_scale=self.layer_decay ** (top - layer) * (self.head_lr_scale if of_head else 1),
                    adapt=weight,
                ),
            )
            group.params.append(parameter)
        return [groups[key] for key in sorted(groups)]


class Answer(nn.Module):
    """A classifier as others use one: images (B, 3, H, W) in, uint8 or already normalised; probabilities (B, K) out."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Probability of every class."""
        answer: ClsPrediction = self.classifier([images], mode="predict")
        return answer.probability


def mix(images: Tensor, target: Tensor, mixing: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and distributions over classes (B, K), each mixed with the row half a batch further on.

    mixing: (B, 5), see `data.mixing.Mixing`. A label's share is its image's share of the pixels, boxes being rounded to
    whole ones.
    """
    shift = len(images) // 2
    share, top, left, bottom, right = mixing.to(images.dtype).unbind(1)
    height, width = images.shape[2:]
    box = _between(top, bottom, height)[:, :, None] & _between(left, right, width)[:, None]  # (B, H, W)
    own = share[:, None, None] * ~box
    of_label = own.mean((1, 2))[:, None].to(target.dtype)
    mixed = images * own[:, None] + images.roll(shift, 0) * (1 - own)[:, None]
    return mixed, target * of_label + target.roll(shift, 0) * (1 - of_label)


def _between(first: Tensor, last: Tensor, extent: int) -> Tensor:
    """(B, extent) bool: which pixels of an axis lie from `first` to `last` (B,), parts of its length."""
    pixel = torch.arange(extent, device=first.device)
    return ((first * extent).round()[:, None] <= pixel) & (pixel < (last * extent).round()[:, None])
