"""CAELoss: the right token, and the right latent, for every hidden patch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.ranges import NotNegative


class CAELoss(nn.Module):
    """Cross-entropy of the tokens, and `align_weight` times the mean squared error of the latents.

    Source: CAE, arXiv 2202.03026, section 3.2. Means over hidden patches (and channels), in float32 at least, also
    under autocast.
    """

    def __init__(self, align_weight: NotNegative = 2.0) -> None:
        super().__init__()
        self.align_weight = align_weight

    def forward(
        self, logits: Tensor, tokens: Tensor, latent: Tensor, latent_target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The two parts, scalars whose sum is trained.

        logits: (B, M, V). tokens: (B, M) int64. latent: (B, M, D), to become latent_target, which takes no gradient.
        """
        logits, latent = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (logits, latent))
        main = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        align = self.align_weight * F.mse_loss(latent, latent_target.detach().to(latent.dtype))
        return main, align
