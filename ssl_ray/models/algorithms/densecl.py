"""DenseCL (Wang et al. 2021, arXiv 2011.09157)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.models.base import BaseModel, Output, Progress, Samples, Views
from ssl_ray.models.heads.contrastive_head import ContrastiveHead
from ssl_ray.models.memories.queue import Queue
from ssl_ray.models.necks.densecl_neck import DenseProjection
from ssl_ray.models.shuffle_bn import encode, encode_shuffled
from ssl_ray.models.teacher import Teacher
from ssl_ray.models.unit import unit
from ssl_ray.ranges import Count, Fraction, Natural


class DenseCL(BaseModel):
    """MoCo, and the same once more for every cell of the map: a cell's key is the most similar cell of the other view.

    loss = (1 - loss_lambda) * image + loss_lambda * dense. Both parts are InfoNCE of view 0 against a key of view 1 and
    a queue of earlier keys, all of unit length. In the dense part the rows are the B * S cells; which cell of the other
    view matches is decided by the backbone's features, not by the projections; negatives are earlier images' mean dense
    projections. Teacher and queues are written after the optimiser step, as in MoCo.

    Args:
        backbone: its last map is what is dense.
        neck: DenseCLNeck, or another that makes a DenseProjection and has `out_channels`, the length of a key.
        head: called with similarities pos (B, 1) or (B * S, 1), and neg (..., queue_size); has `accuracy(pos, neg)`.
        queue_size: number of negatives, of each of the two queues.
        momentum: weight of the old average in the teacher.
        loss_lambda: share of the dense part.
        start_iters: steps at the beginning with no dense part, while features do not match anything yet.
        shuffle_bn: the teacher sees the key images dealt to the workers in another order than the queries; see MoCo.
        split_bn: the teacher encodes a worker's key images in that many groups, each with its own BN statistics.
        decay_norms: weight decay acts on biases and norms, too, as in the official code.

    Reads `samples["shuffle"]`, the permutation of the global batch, where given; else draws it.
    """

    num_views = 2
    neck: nn.Module
    head: ContrastiveHead
    steps: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: ContrastiveHead,
        queue_size: Count = 65536,
        momentum: Fraction = 0.999,
        loss_lambda: Fraction = 0.5,
        start_iters: Natural = 1000,
        shuffle_bn: bool = True,
        split_bn: Count = 1,
        decay_norms: bool = True,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        self.decay_norms = decay_norms
        dim = getattr(neck, "out_channels", None)
        if not isinstance(dim, int):
            raise UserError(
                f"DenseCL: neck {type(neck).__name__} has no int attribute out_channels (the length of a key); add it"
            )
        self.teacher = Teacher(backbone, neck)
        self.queue = Queue(queue_size, dim)
        self.dense_queue = Queue(queue_size, dim)
        # Optimiser steps taken: what the loss knows of the run's progress.
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.momentum = momentum
        self.loss_lambda = loss_lambda
        self.start_iters = start_iters
        self.shuffle_bn = shuffle_bn
        self.split_bn = split_bn

    @property
    def projector(self) -> Callable[[Any], Tensor]:
        """The image's projection, of the neck's two."""
        return lambda maps: self.neck(maps).image

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """The backbone's maps of view 0."""
        maps: tuple[Tensor, ...] = self.backbone(views[0])
        return maps

    def loss(self, views: Views, samples: Samples) -> Output:
        """Both InfoNCE losses of view 0 against keys of view 1. State: keys (B, D), dense_keys (B, D).

        Metrics loss_single and loss_dense are weighted: they add up to the loss.
        """
        q = DenseProjection(*map(unit, self.neck(self.backbone(views[0]))))
        k = self._keys(views[1], samples.get("shuffle"))
        with torch.autocast(q.image.device.type, enabled=False):
            pos = (q.image * k.image).sum(1, keepdim=True)
            neg = q.image @ self.queue.rows.T
            match = correspondence(q.features, k.features)
            matched = k.cells.gather(2, match.unsqueeze(1).expand_as(q.cells))
            dense_pos = (q.cells * matched).sum(1).flatten().unsqueeze(1)  # (B * S, 1)
            dense_neg = q.cells.mT.flatten(0, 1) @ self.dense_queue.rows.T  # (B * S, queue_size)
            share = self.loss_lambda * (self.steps >= self.start_iters).to(pos.dtype)
            single = (1 - share) * self.head(pos, neg)
            dense = share * self.head(dense_pos, dense_neg)
        metrics = {"loss_single": single.detach(), "loss_dense": dense.detach()}
        return Output(
            single + dense,
            metrics=metrics | {"contrast_top1": self.head.accuracy(pos, neg)},
            state={"keys": k.image, "dense_keys": k.pooled},
        )

    def predict(self, views: Views, samples: Samples) -> Tensor:
        """What cells are matched by: the backbone's last map of view 0, each cell of unit length, (B, C, H * W)."""
        return unit(self.backbone(views[0])[-1].flatten(2))

    @torch.no_grad()
    def _keys(self, images: Tensor, shuffle: Tensor | None) -> DenseProjection:
        """The teacher's unit projections of this rank's `images`, encoded in shuffled order where that matters."""
        if self.shuffle_bn:
            keys = encode_shuffled(self.teacher, images, self.split_bn, shuffle)
        else:
            keys = encode(self.teacher, images, self.split_bn)
        return DenseProjection(*map(unit, keys))

    def after_step(self, state: dict[str, Tensor], progress: Progress) -> None:
        """Moves the teacher, then puts the keys of all ranks into the queues, in global row order."""
        self.teacher.update(self.backbone, self.neck, self.momentum)
        self.queue.enqueue(distributed.gather(state["keys"]))
        self.dense_queue.enqueue(distributed.gather(state["dense_keys"]))
        self.steps.fill_(progress.step + 1)


@torch.no_grad()
def correspondence(queries: Tensor, keys: Tensor) -> Tensor:
    """For each cell of `queries` the most similar cell of `keys`, (B, S) int64. Both are (B, C, S) of unit length."""
    return (queries.mT @ keys).argmax(2)
