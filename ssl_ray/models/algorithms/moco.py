"""MoCo v1 / v2 (He et al. 2019, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297)."""

import torch
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.models.base import BaseModel, Output, Progress, Samples, Views
from ssl_ray.models.heads.contrastive_head import ContrastiveHead
from ssl_ray.models.memories.queue import Queue
from ssl_ray.models.shuffle_bn import encode, encode_shuffled
from ssl_ray.models.teacher import Teacher
from ssl_ray.models.unit import unit
from ssl_ray.ranges import Count, Fraction


class MoCo(BaseModel):
    """A query must find its key, made by a momentum encoder, among a queue of earlier keys.

    loss = CE([q.k, q.queue] / T, 0), q of view 0 and k of view 1 of unit length. The teacher and then the queue are
    written after the optimiser step, so keys are always made with the newest average, and are never negatives of
    their own batch. v1 has a LinearNeck; v2 a NonLinearNeck(with_bias=True, with_last_bias=True, with_bn=False,
    with_last_bn=False).

    Args:
        backbone, neck: the encoder. `neck.out_channels` is the length of a key.
        head: called with similarities pos (B, 1) and neg (B, queue_size); has `accuracy(pos, neg)`.
        queue_size: number of negatives.
        momentum: weight of the old average in the teacher.
        shuffle_bn: the teacher sees the key images dealt to the workers in another order than the queries, so that
            BN statistics do not tell which key belongs to which query (section 3.3). With one worker and split_bn=1
            BN sees the same set either way, so nothing is shuffled.
        split_bn: the teacher encodes a worker's key images in that many groups, each with its own BN statistics: the
            stand-in for many workers on one device (the official CIFAR demo uses 8).
        decay_norms: weight decay acts on biases and norms, too, as in the official code.

    Reads `samples["shuffle"]`, the permutation of the global batch, where given; else draws it.
    """

    num_views = 2
    neck: nn.Module
    head: ContrastiveHead

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: ContrastiveHead,
        queue_size: Count = 65536,
        momentum: Fraction = 0.999,
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
                f"MoCo: neck {type(neck).__name__} has no int attribute out_channels (the length of its output); add it"
            )
        self.teacher = Teacher(backbone, neck)
        self.queue = Queue(queue_size, dim)
        self.momentum = momentum
        self.shuffle_bn = shuffle_bn
        self.split_bn = split_bn

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """The backbone's maps of view 0."""
        maps: tuple[Tensor, ...] = self.backbone(views[0])
        return maps

    def loss(self, views: Views, samples: Samples) -> Output:
        """InfoNCE of view 0 against the key of view 1 and the queue. State: keys (B, D)."""
        q = self.predict(views, samples)
        k = self._keys(views[1], samples.get("shuffle"))
        with torch.autocast(q.device.type, enabled=False):
            pos = (q * k).sum(1, keepdim=True)
            neg = q @ self.queue.rows.T
            loss = self.head(pos, neg)
        return Output(loss, metrics={"contrast_top1": self.head.accuracy(pos, neg)}, state={"keys": k})

    def predict(self, views: Views, samples: Samples) -> Tensor:
        """Embedding (B, D): the projection of view 0, of unit length."""
        return unit(self.neck(self.backbone(views[0])))

    @torch.no_grad()
    def _keys(self, images: Tensor, shuffle: Tensor | None) -> Tensor:
        """Unit keys (B, D) of this rank's `images`, encoded in shuffled order where that matters."""

        def encoder(group: Tensor) -> tuple[Tensor]:
            return (unit(self.teacher(group)),)

        if self.shuffle_bn:
            (keys,) = encode_shuffled(encoder, images, self.split_bn, shuffle)
        else:
            (keys,) = encode(encoder, images, self.split_bn)
        return keys

    def after_step(self, state: dict[str, Tensor], progress: Progress) -> None:
        """Moves the teacher, then puts the keys of all ranks into the queue, in global row order."""
        self.teacher.update(self.backbone, self.neck, self.momentum)
        self.queue.enqueue(distributed.gather(state["keys"]))
