"""NPID, instance discrimination with a memory bank (Wu et al. 2018, arXiv 1805.01978)."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.models.base import BaseModel, Output, Progress, Samples, Views
from ssl_ray.models.counter_random import random_bits
from ssl_ray.models.heads.contrastive_head import ContrastiveHead
from ssl_ray.models.memories.simple_memory import SimpleMemory
from ssl_ray.models.unit import unit


class NPID(BaseModel):
    """Every image is a class of its own: its embedding must find the one made of it an epoch ago.

    loss = CE([v.bank[i], v.bank[negatives]] / T, 0), v of unit length: a softmax over the image and negatives drawn
    uniformly, with replacement, for each row. (The paper estimates it by NCE with 4096 of them; its authors' later code
    and MMSelfSup take the softmax of 65536.) The bank is written after the optimiser step.

    Args:
        backbone, neck: the encoder.
        head: called with similarities pos (B, 1) and neg (B, num_negatives); has `accuracy(pos, neg)`.
        memory: the bank, with a row for each training image.
        num_negatives: of each image.
        ensure_neg: an image is never drawn as a negative of itself.
        decay_norms: weight decay acts on biases and norms, too, as in the official code.

    Reads `samples["index"]`, the position in the data set (B,), and `samples["negatives"]`, (B, num_negatives) such
    positions, where given; else draws them.
    """

    neck: nn.Module
    head: ContrastiveHead
    memory: SimpleMemory

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: ContrastiveHead,
        memory: SimpleMemory,
        num_negatives: Annotated[int, Field(gt=0, le=2**20)] = 65536,
        ensure_neg: bool = False,
        decay_norms: bool = True,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        self.decay_norms = decay_norms
        images, dim = memory.rows.shape
        if getattr(neck, "out_channels", dim) != dim:
            raise UserError(
                f"NPID: neck.out_channels {neck.out_channels} is not memory.dim {dim}; make them equal"
            )
        if ensure_neg and images < 2:
            raise UserError(
                f"NPID: ensure_neg=True with a memory of {images} image(s) leaves nothing to draw"
            )
        self.memory = memory
        self.num_negatives = num_negatives
        self.ensure_neg = ensure_neg

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """The backbone's maps of view 0."""
        maps: tuple[Tensor, ...] = self.backbone(views[0])
        return maps

    def loss(self, views: Views, samples: Samples) -> Output:
        """Sampled softmax of view 0 against the bank. State: index (B,) and embeddings (B, D)."""
        index = samples["index"]
        negatives = samples["negatives"] if "negatives" in samples else self._draw(index)
        v = self.predict(views, samples)
        with torch.autocast(v.device.type, enabled=False):
            similarities = self.memory.similarities(v, torch.cat([index.unsqueeze(1), negatives], dim=1))
            pos, neg = similarities[:, :1], similarities[:, 1:]
            loss = self.head(pos, neg)
        state = {"index": index, "embeddings": v.detach()}
        return Output(loss, metrics={"contrast_top1": self.head.accuracy(pos, neg)}, state=state)

    def predict(self, views: Views, samples: Samples) -> Tensor:
        """Embedding (B, D): the projection of view 0, of unit length, in float32 at least."""
        return unit(self.neck(self.backbone(views[0])))

    def _draw(self, index: Tensor) -> Tensor:
        """Negatives (B, num_negatives): the same for a row of the global batch on any number of workers."""
        # What is sent is a seed per row, not the rows: with 65536 negatives these are half a MiB each.
        rows = len(index) * distributed.world_size()
        seeds = distributed.local_rows(
            distributed.broadcast(torch.randint(2**62, (rows,), device=index.device))
        )
        columns = torch.arange(self.num_negatives, device=index.device)
        choices = len(self.memory.rows) - self.ensure_neg
        drawn = (random_bits(columns, seeds.unsqueeze(1)) & (2**63 - 1)) % choices
        # Of the others there is one fewer: those from the image itself on move up by one.
        return drawn + (drawn >= index.unsqueeze(1)) if self.ensure_neg else drawn

    def after_step(self, state: dict[str, Tensor], progress: Progress) -> None:
        """Writes the embeddings of all ranks into the bank."""
        self.memory.update(distributed.gather(state["index"]), distributed.gather(state["embeddings"]))
