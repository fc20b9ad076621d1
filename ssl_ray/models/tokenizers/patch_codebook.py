"""A visual vocabulary learned from the training images themselves, where no published tokenizer is at hand."""

import math
from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.models.clustering.kmeans import kmeans, nearest
from ssl_ray.models.tokenizers.tokenizer import Collect, Tokenizer
from ssl_ray.ranges import Classes, Count, Natural, Patches, Seed

# Added to a patch's variance before its root divides: 10 on the scale 0..255 (Coates et al. 2011, section 3.1.1).
_FLAT = 10 / 255**2


class PatchCodebook(Tokenizer):
    """The nearest of `num_tokens` patches, which are the k-means centroids of patches of the training images.

    Stands in for CAE's DALL-E tokenizer with nothing to download. A patch is averaged down to `cell_size` pixels a side
    and compared in pixel values, so that its brightness and colour count beside its shape, or normalised first. The
    codebook is fitted once, before the first epoch, from `patches_per_image` patches of every image, each image giving
    others, of which at most `patches_per_token` times `num_tokens` are used. It is the same on any number of workers,
    and saved in checkpoints. Until it is fitted every patch is the same token. Fitting passes over all images once and
    holds the patches it collects, for ImageNet 4 GB of them, spread over the workers.

    Args:
        num_tokens: size of the vocabulary. num_patches: of an image, a square number.
        cell_size: pixels along the side of a patch as it is compared.
        norm_patch: patches are compared with zero mean and unit deviation, but for a floor that keeps flat ones flat.
        patches_per_image, patches_per_token: how much the codebook is fitted on; k-means' usual 40 to 250 per centroid.
        iterations: of k-means. seed: of its start.

    Raises UserError if num_patches is not a square, or when there are fewer patches than tokens.
    """

    codebook: Tensor
    fitted: Tensor

    def __init__(
        self,
        num_tokens: Classes = 8192,
        num_patches: Patches = 196,
        cell_size: Annotated[int, Field(gt=0, le=256)] = 8,
        norm_patch: bool = False,
        patches_per_image: Count = 4,
        patches_per_token: Count = 64,
        iterations: Natural = 20,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.side = math.isqrt(num_patches)
        if self.side**2 != num_patches:
            raise UserError(f"num_patches: {num_patches} is not a square; give (img_size / patch_size)^2")
        self.cell_size = cell_size
        self.norm_patch = norm_patch
        self.patches_per_image = min(patches_per_image, num_patches)
        self.patches_per_token = patches_per_token
        self.iterations = iterations
        self.seed = seed
        self.register_buffer("codebook", torch.zeros(num_tokens, 3 * cell_size**2))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.uint8))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Tokens (B, rows, columns) of images (B, 3, H, W) in [0, 1], of any size."""
        with torch.autocast(images.device.type, enabled=False):
            patches = self.patches(images).to(self.codebook.dtype)
            tokens, _ = nearest(patches.flatten(0, 1), self.codebook)
        return tokens.view(-1, self.side, self.side)

    def patches(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the vectors that are compared, (B, num_patches, 3 * cell_size^2)."""
        small = F.adaptive_avg_pool2d(images, self.side * self.cell_size)
        patches = F.unfold(small, self.cell_size, stride=self.cell_size).transpose(1, 2)
        if not self.norm_patch:
            return patches
        var, mean = torch.var_mean(patches, dim=2, keepdim=True, correction=0)
        return (patches - mean) / (var + _FLAT).sqrt()

    def prepare(self, collect: Collect) -> None:
        """Fits the codebook, unless it is fitted."""
        if self.fitted:
            return
        index, patches = collect(self._sampler())
        rows = int(distributed.sum_(torch.tensor(patches.shape[0] * patches.shape[1], device=patches.device)))
        if rows < self.num_tokens:
            raise UserError(
                f"num_tokens: {self.num_tokens} words cannot be learned from {rows} patches; lower num_tokens of the "
                "tokenizer and of the neck, or raise patches_per_image"
            )
        # One of so many images, where there are more than enough.
        kept = index % max(1, rows // (self.num_tokens * self.patches_per_token)) == 0
        count = patches.shape[1]
        numbers = index[kept, None] * count + torch.arange(count, device=index.device)
        found = kmeans(
            patches[kept].flatten(0, 1),
            self.num_tokens,
            seed=self.seed,
            iterations=self.iterations,
            index=numbers.flatten(),
        )
        self.codebook.copy_(found.centroids)
        self.fitted.fill_(1)

    def _sampler(self) -> Callable[[Tensor], Tensor]:
        """Function from images to `patches_per_image` patches of each, evenly spaced, from another one on each time."""
        seen = 0
        count, total = self.patches_per_image, self.side**2

        def sample(images: Tensor) -> Tensor:
            nonlocal seen
            # Collected in ascending order, this rank's i-th image is number i * W + r of all.
            first = torch.arange(seen, seen + len(images), device=images.device)
            seen += len(images)
            first = first * distributed.world_size() + distributed.rank()
            spaced = torch.arange(count, device=images.device) * total // count
            chosen = (first[:, None] + spaced) % total
            patches = self.patches(images)
            return patches.gather(1, chosen[:, :, None].expand(-1, -1, patches.shape[2]))

        return sample
