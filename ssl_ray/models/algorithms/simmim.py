"""SimMIM (Xie et al. 2022, arXiv 2111.09886): hide squares of an image and predict their pixels."""

import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.algorithms.mae import Reconstruction
from ssl_ray.models.backbones.simmim_swin import SimMIMSwinTransformer
from ssl_ray.models.base import BaseModel, Output, ParamGroup, Samples, Views
from ssl_ray.models.heads.simmim_head import SimMIMHead
from ssl_ray.models.necks.simmim_neck import SimMIMNeck


class SimMIM(BaseModel):
    """Masked image modelling with a hierarchical encoder that sees hidden patches as a token.

    One view, and `samples["mask"]` (B, H / patch_size, W / patch_size), 1 = hidden, which `simmim_views` makes: squares
    of several patches each. Features and predictions without a mask are those of the whole image.

    Args:
        backbone: called with images and mask; has `stride` and `mask_token`.
        neck: from the last map to pixels; `encoder_stride` is the backbone's.
        decay_tokens: weight decay acts on the mask token, as in MMSelfSup; the authors' code leaves it out. Tables
            of relative positions, biases and norms are never decayed.
    """

    backbone: SimMIMSwinTransformer
    neck: SimMIMNeck
    head: SimMIMHead

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
        decay_tokens: bool = False,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        self.decay_tokens = decay_tokens
        if self.neck.encoder_stride != self.backbone.stride:
            raise UserError(
                f"neck.encoder_stride: {self.neck.encoder_stride}, but a cell of the backbone's last map has "
                f"{self.backbone.stride} pixels; set neck.encoder_stride={self.backbone.stride}"
            )

    def extract_feat(self, views: Views, samples: Samples | None = None) -> Tensor:
        """The reconstructed images, (B, C, H, W). Features for downstream use: `embed`, `backbone`."""
        images: Tensor = self.neck(self.backbone(views[0], (samples or {}).get("mask")))
        return images

    def loss(self, views: Views, samples: Samples) -> Output:
        """Absolute error on the hidden pixels. Raises UserError without a mask."""
        if "mask" not in samples:
            raise UserError("SimMIM: samples have no 'mask' of the patches to hide; use views=simmim_views")
        return Output(self.head(self.extract_feat(views, samples), views[0], samples["mask"]))

    @torch.no_grad()
    def predict(self, views: Views, samples: Samples) -> Reconstruction:
        """Predicted pixels of the whole image, and which were hidden."""
        pred = self.extract_feat(views, samples)
        mask = samples.get("mask")
        hidden = torch.zeros_like(pred[:, :1]) if mask is None else self.head.pixels(mask)
        return Reconstruction(pred.permute(0, 2, 3, 1), hidden.bool().expand_as(pred).permute(0, 2, 3, 1))

    def param_groups(self) -> list[ParamGroup]:
        """Weights, and apart from them what is not decayed."""
        weights, rest = super().param_groups()
        names = ("relative_position_bias_table", *(() if self.decay_tokens else ("mask_token",)))
        plain = [p for name, p in self.backbone.named_parameters() if name.endswith(names) and p.ndim > 1]
        kept_out = {id(p) for p in plain}
        weights.params = [p for p in weights.params if id(p) not in kept_out]
        rest.params = [*rest.params, *(p for p in plain if p.requires_grad)]
        return [weights, rest]
