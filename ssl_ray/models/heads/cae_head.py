"""CAEHead: how far predicted tokens and latents of the hidden patches are from the true ones."""

import torch
from torch import Tensor, nn

from ssl_ray.models.losses.cae_loss import CAELoss


class CAEHead(nn.Module):
    """Owns the loss; CAELoss() when None. Source: CAE, arXiv 2202.03026, section 3.2.

    loss: called with logits (B, M, V), tokens (B, M), latent and latent_target (B, M, D); returns the part of the
    tokens and the part of the latents.
    """

    def __init__(self, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss or CAELoss()

    def forward(
        self, logits: Tensor, tokens: Tensor, latent: Tensor, latent_target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The two parts of the loss, scalars; arguments as of the loss."""
        main, align = self.loss(logits, tokens, latent, latent_target)
        return main, align

    @torch.no_grad()
    def accuracy(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Share of hidden patches whose most likely token is the right one."""
        return (logits.argmax(-1) == tokens).float().mean()
