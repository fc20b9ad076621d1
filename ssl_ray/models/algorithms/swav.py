"""SwAV (Caron et al. 2020, arXiv 2006.09882)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.models.base import BaseModel, Output, ParamGroup, Progress, Samples, Views
from ssl_ray.models.heads.swav_head import SwAVHead
from ssl_ray.models.memories.swav_queue import SwAVQueue
from ssl_ray.ranges import Natural


class SwAV(BaseModel):
    """Each crop predicts to which prototypes the large crops of its image are assigned; all images share the prototypes
    out equally.

    Crops of one size in a row pass the backbone as one batch, and all together the neck; on several workers use SyncBN.
    The assignment is over the global batch, and over a queue of earlier embeddings where the batch is small compared
    with the number of prototypes. Prototypes are set to unit length before each optimiser step.

    Args:
        backbone: its last map is pooled by the neck.
        neck: called with the features of each size of crop, a list; returns unit embeddings of all crops, crop by crop.
            Has `out_channels`.
        head: has `prototypes`, `scores(z)`, `agreement(scores)`, `normalize_prototypes()` and `loss.crops_for_assign`,
            and is called as SwAVHead.
        queue_size: images in the queue, those of all workers; 0 for none.
        queue_start_epoch: the queue is filled from this epoch on (counted from 0), and used once it is full.
        freeze_prototypes_epochs: for so many epochs from the start the prototypes are not trained.
    """

    neck: nn.Module
    head: SwAVHead

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: SwAVHead,
        queue_size: Natural = 0,
        queue_start_epoch: Natural = 15,
        freeze_prototypes_epochs: Natural = 1,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        dim = head.prototypes.in_features
        if getattr(neck, "out_channels", dim) != dim:
            raise UserError(
                f"SwAV: neck.out_channels {neck.out_channels} is not head.in_channels {dim}; make them equal"
            )
        self.crops_for_assign = list(head.loss.crops_for_assign)
        self.queue = SwAVQueue(queue_size, len(self.crops_for_assign), dim) if queue_size else None
        self.queue_start_epoch = queue_start_epoch
        self.freeze_prototypes_epochs = freeze_prototypes_epochs

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """The backbone's maps of view 0."""
        maps: tuple[Tensor, ...] = self.backbone(views[0])
        return maps

    def loss(self, views: Views, samples: Samples) -> Output:
        """Swapped prediction over all crops. State, with a queue: embeddings (B, A, D) of the crops for assignment."""
        z: Tensor = self.neck([self.backbone(crops) for crops in _by_size(views)])
        z = z.view(len(views), -1, z.shape[1]).transpose(0, 1)  # (B, V, D)
        with torch.autocast(z.device.type, enabled=False):
            scores = self.head.scores(z)
            if self.queue is None:
                loss = self.head(scores)
            else:
                with torch.no_grad():  # each rank scores its share of the queue
                    queued = self.head.scores(distributed.local_rows(self.queue.rows))
                loss = self.head(scores, queued, self.queue.full)
        assigned = {} if self.queue is None else {"embeddings": z[:, self.crops_for_assign].detach()}
        return Output(loss, metrics={"crop_agreement": self.head.agreement(scores)}, state=assigned)

    def predict(self, views: Views, samples: Samples) -> Tensor:
        """Embedding (B, D): the projection of view 0, of unit length."""
        embedding: Tensor = self.neck([self.backbone(views[0])])
        return embedding

    @property
    def projector(self) -> Callable[[Any], Tensor]:
        """The neck, which takes a list with the output for each size of crop."""
        return lambda maps: self.neck([maps])

    def assign(self, projections: Tensor) -> Tensor:
        """How many fall to each prototype, the nearest."""
        nearest = self.head.scores(projections).argmax(1)
        return torch.bincount(nearest, minlength=self.head.prototypes.out_features)

    def before_step(self, progress: Progress) -> None:
        """Projects the prototypes to unit length, and takes their gradient away while they are frozen."""
        self.head.normalize_prototypes()
        if progress.epoch < self.freeze_prototypes_epochs:
            # None and not zero: momentum and decay would move them.
            self.head.prototypes.weight.grad = None

    def after_step(self, state: dict[str, Tensor], progress: Progress) -> None:
        """Puts the embeddings of all ranks into the queue, in global row order."""
        if self.queue is not None and progress.epoch >= self.queue_start_epoch:
            self.queue.enqueue(distributed.gather(state["embeddings"]))

    def param_groups(self) -> list[ParamGroup]:
        """One group: the official code also decays and adapts biases and norms."""
        return [ParamGroup([p for p in self.parameters() if p.requires_grad])]


def _by_size(views: Views) -> Views:
    """Views of one size in a row, joined: a batch for each."""
    runs: list[Views] = []
    for view in views:
        if runs and runs[-1][0].shape == view.shape:
            runs[-1].append(view)
        else:
            runs.append([view])
    return [torch.cat(run) for run in runs]
