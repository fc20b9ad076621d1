"""SimMIMHead: what the pixels should be, and how far the prediction is from them."""

from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.losses.simmim_reconstruction_loss import SimMIMReconstructionLoss
from ssl_ray.ranges import Pixels


class SimMIMHead(nn.Module):
    """Expands the mask from patches to pixels and owns the loss. The target is the normalised image itself.

    Args:
        patch_size: side in pixels of a cell of the mask.
        loss: called with pred, target (B, C, H, W) and mask (B, 1, H, W); SimMIMReconstructionLoss() when None.
    """

    def __init__(self, patch_size: Pixels = 4, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.loss = loss or SimMIMReconstructionLoss()

    def forward(self, pred: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Scalar loss of pred (B, C, H, W) given images of that shape and mask (B, H / patch_size, W / patch_size).

        Raises UserError if the three do not have one size.
        """
        pixels = self.pixels(mask)
        if pred.shape != images.shape or pixels.shape[2:] != images.shape[2:]:
            raise UserError(
                f"patch_size: {self.patch_size} in the head makes a mask of {tuple(pixels.shape[2:])} pixels for "
                f"images {tuple(images.shape)} and prediction {tuple(pred.shape)}; use one patch_size everywhere"
            )
        loss: Tensor = self.loss(pred, images, pixels)
        return loss

    def pixels(self, mask: Tensor) -> Tensor:
        """(B, H / patch_size, W / patch_size) -> (B, 1, H, W)."""
        p = self.patch_size
        return mask.repeat_interleave(p, dim=1).repeat_interleave(p, dim=2).unsqueeze(1)
