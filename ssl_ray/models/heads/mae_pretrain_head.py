"""MAEPretrainHead: what the pixels should be, and how far the prediction is from them."""

import math

from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.losses.mae_reconstruction_loss import MAEReconstructionLoss
from ssl_ray.ranges import Pixels


class MAEPretrainHead(nn.Module):
    """Patchifies the image and owns the loss. Source: MAE, arXiv 2111.06377, section 3.

    Patches are ordered row by row, the P = patch_size^2 * C pixels of a patch as (row, column, channel). With
    `norm_pix` the target is each patch with zero mean and unit (unbiased) variance, which the paper's best models use.
    """

    def __init__(
        self, patch_size: Pixels = 16, norm_pix: bool = False, loss: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm_pix = norm_pix
        self.loss = loss or MAEReconstructionLoss()

    def forward(self, pred: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """The loss of pred (B, L, P) given images (B, C, H, W) and mask (B, L), 1 or True = removed.

        Raises UserError if pred has other patches than the images.
        """
        target = self.target(images)
        if pred.shape != target.shape:
            raise UserError(
                f"patch_size: {self.patch_size} in the head makes the target {tuple(target.shape)} (images, patches, "
                f"pixels), the decoder predicts {tuple(pred.shape)}; use one patch_size everywhere"
            )
        loss: Tensor = self.loss(pred, target, mask)
        return loss

    def target(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> what is to be predicted, (B, L, P)."""
        patches = self.patchify(images)
        if not self.norm_pix:
            return patches
        mean, std = self.statistics(patches)
        return (patches - mean) / std

    def statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, P) -> mean and standard deviation of each patch, (B, L, 1)."""
        var, mean = patches.var(dim=-1, keepdim=True), patches.mean(dim=-1, keepdim=True)
        return mean, (var + 1e-6).sqrt()

    def patchify(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, P)."""
        b, c, height, width = images.shape
        p = self.patch_size
        cut = images.reshape(b, c, height // p, p, width // p, p)
        return cut.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, L, P) -> (B, C, H, W), the inverse of `patchify` for square images."""
        p, side = self.patch_size, math.isqrt(patches.shape[1])
        cut = patches.reshape(len(patches), side, side, p, p, -1)
        return cut.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, side * p, side * p)
