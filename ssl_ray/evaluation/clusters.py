"""How the images of a clustering algorithm share its clusters."""

import torch
from torch import Tensor


def cluster_metrics(sizes: Tensor) -> dict[str, float]:
    """Metrics of a clustering with so many images in each cluster. sizes: (K,), over all ranks.

    clusters/occupancy: share of the clusters that hold an image, in 0..1; of n < K images at most n / K.
    clusters/perplexity: exp of the entropy of the shares, in 1..K: so many clusters of equal size are as uneven.
    clusters/largest: share of the images in the largest cluster; 1 when one holds all, the trivial solution that
    DeepCluster names (Caron et al. 2018, arXiv 1807.05520, section 3.3).
    Empty for a clustering without images.
    """
    total = sizes.sum()
    if not total:
        return {}
    share = sizes.to(torch.float32) / total
    return {
        "clusters/occupancy": float((sizes > 0).float().mean()),
        "clusters/perplexity": float(torch.special.entr(share).sum().exp()),
        "clusters/largest": float(share.max()),
    }
