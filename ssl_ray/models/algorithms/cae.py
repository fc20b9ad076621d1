"""CAE: predict the latents of hidden patches from those of visible ones, and from the latents their tokens."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.backbones.cae_vit import CAEViT
from ssl_ray.models.base import BaseModel, Extract, Output, Progress, Samples, Views
from ssl_ray.models.heads.cae_head import CAEHead
from ssl_ray.models.necks.cae_neck import CAENeck
from ssl_ray.models.preprocessing import DataPreprocessor
from ssl_ray.models.teacher import Teacher
from ssl_ray.models.tokenizers.tokenizer import Tokenizer
from ssl_ray.ranges import Count, Fraction


class Prediction(NamedTuple):
    """Tokens of all patches, (B, rows, columns) int64 each.

    tokens: the true ones, where they are hidden the most likely ones instead. hidden: which are hidden, bool.
    """

    tokens: Tensor
    hidden: Tensor


class CAE(BaseModel):
    """Context autoencoder (Chen et al. 2022, arXiv 2202.03026).

    The encoder sees the visible patches only. The neck regresses the latents of the hidden patches and decodes their
    tokens; the teacher, which sees the hidden patches only, says what the latents should be. loss = CE(tokens) +
    w MSE(latents). View 0 is the encoder's; view 1, the same crop, the tokenizer's.

    The teacher moves at the end of a step's forward pass: with the weights that made the loss, before the optimiser
    changes them, as in the official code. With momentum 0 it is the encoder of one step ago.

    Args:
        tokenizer: gives the tokens; None if all samples bring them along. Takes images in [0, 1].
        num_masked: patches hidden in each image, as many as the views' mask has.
        momentum: weight of the old average in the teacher.

    Reads `samples["mask"]` (B, rows, columns): the num_masked patches of the largest values are hidden, which are the
    ones of a mask with so many. Reads `samples["tokens"]` (B, rows, columns) int64 where given.

    Raises UserError for a number of hidden patches that leaves none of either kind, and for a tokenizer with another
    vocabulary than the neck's.
    """

    backbone: CAEViT
    neck: CAENeck
    head: CAEHead
    data_preprocessor: DataPreprocessor

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        tokenizer: Tokenizer | None = None,
        num_masked: Count = 75,
        momentum: Fraction = 0.0,
        pretrained: str | None = None,
        data_preprocessor: DataPreprocessor | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        num_patches = self.backbone.patch_embed.num_patches
        if not 0 < num_masked < num_patches:
            raise UserError(f"num_masked: {num_masked} of {num_patches} patches; use 1 to {num_patches - 1}")
        if tokenizer is not None and tokenizer.num_tokens != self.neck.num_tokens:
            raise UserError(
                f"neck.num_tokens: {self.neck.num_tokens}, but {type(tokenizer).__name__} has {tokenizer.num_tokens} "
                "tokens; give both the same number"
            )
        self.teacher = Teacher(backbone)
        self.tokenizer = tokenizer
        self.num_masked = num_masked
        self.momentum = momentum

    def extract_feat(self, views: Views) -> Tensor:
        """Latents of the whole image, (B, 1 + L, D), class token first."""
        return self.backbone.tokens(views[0])

    def loss(self, views: Views, samples: Samples) -> Output:
        """The sum of both parts; metrics: `main` (tokens), `align` (latents) and the share of right tokens."""
        visible, hidden = self.split(samples)
        tokens = self._tokens(views, samples).gather(1, hidden)
        with torch.no_grad():
            latent_target = self.teacher.backbone(views[0], hidden)[:, 1:]
        logits, latent = self._regress(views[0], visible, hidden)
        main, align = self.head(logits, tokens, latent, latent_target)
        accuracy = self.head.accuracy(logits, tokens)
        parts = {"main": main.detach(), "align": align.detach(), "token_accuracy": accuracy}
        return Output(main + align, metrics=parts)

    @torch.no_grad()
    def predict(self, views: Views, samples: Samples) -> Prediction:
        """The tokens of the image, with those of hidden patches as the visible ones let expect them."""
        visible, hidden = self.split(samples)
        logits, _ = self._regress(views[0], visible, hidden)
        tokens = self._tokens(views, samples).scatter(1, hidden, logits.argmax(-1))
        is_hidden = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, hidden, True)
        rows, columns = self.backbone.patch_embed.grid
        return Prediction(tokens.view(-1, rows, columns), is_hidden.view(-1, rows, columns))

    def split(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Numbers of the visible (B, L - M) and of the M = num_masked hidden patches (B, M), each ascending."""
        if "mask" not in samples:
            raise UserError(
                f"CAE: samples hold no 'mask', only {sorted(samples)}; use views that make one (cae_views)"
            )
        mask = samples["mask"].flatten(1)
        if mask.shape[1] != self.backbone.patch_embed.num_patches:
            raise UserError(
                f"mask: {mask.shape[1]} patches, the backbone has {self.backbone.patch_embed.num_patches}; give the "
                "views and the backbone one size and patch_size"
            )
        order = mask.argsort(dim=1, stable=True)
        return order[:, : -self.num_masked], order[:, -self.num_masked :]

    def _regress(self, images: Tensor, visible: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, M, V) and latents (B, M, D) of the hidden patches."""
        latent = self.backbone(images, visible)[:, 1:]
        positions = (self.backbone.positions(chosen) for chosen in (visible, hidden))
        predicted: tuple[Tensor, Tensor] = self.neck(latent, *positions)
        return predicted

    def _tokens(self, views: Views, samples: Samples) -> Tensor:
        """The true tokens (B, L)."""
        tokens = samples.get("tokens")
        if tokens is None:
            if self.tokenizer is None:
                raise UserError(
                    "tokenizer: CAE has none, and samples hold no 'tokens'; give it one, e.g. PatchCodebook"
                )
            tokens = self.tokenizer(self._pixels(views[1]))
        if tokens.shape[1:] != self.backbone.patch_embed.grid:
            rows, columns = self.backbone.patch_embed.grid
            raise UserError(
                f"tokenizer: {tokens.shape[1]} x {tokens.shape[2]} tokens for {rows} x {columns} patches; change "
                "views.token_size (DALL-E makes one token of 8 x 8 pixels)"
            )
        return tokens.flatten(1)

    def _pixels(self, view: Tensor) -> Tensor:
        """A normalised view on the scale [0, 1]."""
        return (view + self.data_preprocessor.shift) / (255 * self.data_preprocessor.scale)

    def before_epoch(self, progress: Progress, extract: Extract) -> None:
        """Lets the tokenizer learn from the images, if it does."""
        if self.tokenizer is not None:
            self.tokenizer.prepare(lambda function: extract(lambda views: function(self._pixels(views[0]))))

    def before_step(self, progress: Progress) -> None:
        """Moves the teacher towards the encoder that made the loss."""
        self.teacher.update(self.backbone, None, self.momentum)
