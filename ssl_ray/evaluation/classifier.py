"""Evaluation while a classifier is fine-tuned: how many held-out images it gets right."""

import math

import torch
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.evaluation.alarm import IMAGES, NOT_FINITE
from ssl_ray.evaluation.online import OnlineEvaluation
from ssl_ray.evaluation.scores import TOP5_CLASSES
from ssl_ray.evaluation.undisturbed import undisturbed
from ssl_ray.models.base import BaseModel


class ClassifierEvaluation(OnlineEvaluation):
    """Measures a `models.classifier.Classifier` on held-out images in their plain view; made as `OnlineEvaluation` is.

    There is neither a bank nor a warning: features may collapse onto their class, which is the aim here. The numbers
    are the same on any number of ranks.
    """

    @torch.no_grad()
    def run(self, algorithm: BaseModel, *, trained: bool = True) -> dict[str, float]:
        """`val/finetune_top1` and, with more than 5 classes, `val/finetune_top5`, in 0..1; `val/finetune_loss`.

        The loss is the plain cross-entropy, without label smoothing. Images without a label are left out. Every rank
        calls this. All are NaN where an answer is not finite; `not_finite` of `images` says how many are. Raises
        UserError if there is no labelled held-out image.
        """
        sums = torch.zeros(
            5, dtype=torch.float64
        )  # images, not finite, right, among the first five, sum of losses
        num_classes = 0
        with undisturbed(algorithm, self.device):
            for images, index in self._queries.batches():
                views = [images.to(self.device, non_blocking=True)]
                with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                    probability: Tensor = algorithm(views, mode="predict").probability
                labels = self._labels_of(self._queries, [index])
                num_classes = probability.shape[1]
                sums += _scores(probability[labels >= 0], labels[labels >= 0]).to(sums)
        count, lost, *totals = distributed.sum_(sums.to(self._collectives)).tolist()
        if not count:
            raise UserError("evaluation: 0 held-out images with a label; hold some out, or give them labels")
        top1, top5, loss = (math.nan if lost else total / count for total in totals)
        metrics = {NOT_FINITE: lost, IMAGES: count} if lost else {}
        metrics |= {"val/finetune_top1": top1, "val/finetune_loss": loss}
        return metrics | ({"val/finetune_top5": top5} if num_classes >= TOP5_CLASSES else {})

    def raw_pixel_knn(self) -> None:
        """Nothing: raw pixels are no rival of a classifier."""
        return

    @property
    def _collectives(self) -> torch.device:
        """Where numbers have to be for a sum over ranks."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")


def _scores(probability: Tensor, labels: Tensor) -> Tensor:
    """(5,): rows, not finite ones, right ones, right ones among the first five, sum of -log p of the true class.

    A class that the classifier does not have counts as wrong.
    """
    true = probability.new_zeros(len(labels))
    known = labels < probability.shape[1]
    true[known] = probability[known].gather(1, labels[known, None]).squeeze(1)
    best = probability.topk(min(5, probability.shape[1]), dim=1).indices == labels[:, None]
    loss = -true.clamp_min(torch.finfo(true.dtype).tiny).log()
    lost = ~probability.isfinite().all(1)
    parts = (true.new_tensor(len(labels)), lost.sum(), best[:, 0].sum(), best.any(1).sum(), loss.sum())
    return torch.stack([part.double() for part in parts])
