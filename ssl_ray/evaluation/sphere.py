"""Embeddings on the unit sphere: do views of one image meet, do images spread out? (Wang & Isola 2020, 2005.10242)

Rows are this rank's share; results cover all ranks.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.evaluation.knn import gather_rows
from ssl_ray.evaluation.unit import unit

ROWS = 2048
"""Uniformity is measured over the pairs of so many images at most: two million."""


@torch.no_grad()
def alignment(z: Tensor) -> float:
    """Mean squared distance of two views of an image, in 0..4. Source: arXiv 2005.10242, eq. 6, alpha = 2.

    The mean of |z_i - z_j|^2 over the images and their pairs of views, at unit length; 0 is perfect, and what a
    collapse reaches, so read it with uniformity. z: (n, V, D), V views of n images, V at least 2. NaN where z is not
    finite.
    """
    z = F.normalize(z.double() if z.device.type != "mps" else z.float(), dim=2)
    views = z.shape[1]
    # The sum of all V^2 products is |sum of z|^2; V of them are a view's with itself.
    products = (z.sum(dim=1).square().sum(dim=1) - z.square().sum(dim=(1, 2))) / (views * (views - 1))
    together = distributed.sum_(torch.stack([products.sum(), torch.full_like(products.sum(), len(z))]))
    return float(2 - 2 * together[0] / together[1])


@torch.no_grad()
def uniformity(z: Tensor) -> float:
    """Log of the mean of exp(-2 |z_i - z_j|^2) over pairs of images. Source: arXiv 2005.10242, eq. 7, t = 2.

    At unit length, over the first `ROWS` rows of all ranks. 0: one point; the least, near -4 in many dimensions, is a
    uniform spread. z: (n, D). NaN with fewer than two rows, and where one of them is not finite.
    """
    everyones = unit(gather_rows(z)[:ROWS])
    count = len(everyones)
    if count < 2:
        return math.nan
    mine = distributed.local_rows(everyones)
    # |a - b|^2 = 2 - 2 ab; a row with itself contributes exp(0).
    kernel = (4 * (mine @ everyones.T).clamp(max=1) - 4).exp()
    own = torch.arange(distributed.rank(), count, distributed.world_size(), device=z.device)
    kernel[torch.arange(len(own), device=z.device), own] = 0
    total = distributed.sum_(kernel.sum(dtype=torch.float32 if z.device.type == "mps" else torch.float64))
    return float((total / (count * (count - 1))).log())
