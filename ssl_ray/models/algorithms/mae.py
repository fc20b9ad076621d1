"""MAE: hide most patches of an image, encode the rest, reconstruct the pixels."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_ray.models.backbones.mae_vit import MAEViT
from ssl_ray.models.base import BaseModel, Output, ParamGroup, Samples, Views
from ssl_ray.models.heads.mae_pretrain_head import MAEPretrainHead
from ssl_ray.models.necks.mae_pretrain_decoder import MAEPretrainDecoder


class Reconstruction(NamedTuple):
    """pred: (B, H, W, C) in the scale of the normalised input; mask: the same shape, True = removed."""

    pred: Tensor
    mask: Tensor


class MAE(BaseModel):
    """Masked autoencoder. Source: arXiv 2111.06377.

    One view. `samples["mask_noise"]` (B, L) decides what is removed (the smallest stay); without it the noise is drawn
    here. decay_tokens: weight decay acts on class and mask token as in the official code; MMSelfSup leaves
    them out. Biases and norms are never decayed.
    """

    backbone: MAEViT
    neck: MAEPretrainDecoder
    head: MAEPretrainHead

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
        decay_tokens: bool = True,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        self.decay_tokens = decay_tokens

    def extract_feat(self, views: Views, samples: Samples | None = None) -> Tensor:
        """The decoder's output for every patch, (B, L, P). Features for downstream use: `embed`, `backbone.tokens`."""
        return self._reconstruct(views, samples or {})[0]

    def loss(self, views: Views, samples: Samples) -> Output:
        """Squared error on the removed patches."""
        pred, mask = self._reconstruct(views, samples)
        return Output(self.head(pred, views[0], mask))

    @torch.no_grad()
    def predict(self, views: Views, samples: Samples) -> Reconstruction:
        """Predicted pixels of all patches, and which were removed.

        With `norm_pix` each patch gets back the mean and standard deviation of the *original* patch, as in the
        published pictures: that leaks part of the answer.
        """
        pred, mask = self._reconstruct(views, samples)
        if self.head.norm_pix:
            mean, std = self.head.statistics(self.head.patchify(views[0]))
            pred = pred * std + mean
        pixels = mask[:, :, None].expand_as(pred)
        return Reconstruction(*(self.head.unpatchify(x).permute(0, 2, 3, 1) for x in (pred, pixels)))

    def param_groups(self) -> list[ParamGroup]:
        """Weights (and tokens, see `decay_tokens`), and apart from them what is not decayed."""
        tokens = [] if self.decay_tokens else [self.backbone.cls_token, self.neck.mask_token]
        weights, rest = super().param_groups()
        kept_out = {id(p) for p in tokens}
        weights.params = [p for p in weights.params if id(p) not in kept_out]
        rest.params = [*rest.params, *tokens]
        return [weights, rest]

    def _reconstruct(self, views: Views, samples: Samples) -> tuple[Tensor, Tensor]:
        latent, mask, ids_restore = self.backbone(views[0], samples.get("mask_noise"))
        return self.neck(latent, ids_restore), mask
