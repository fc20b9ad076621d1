"""What ODC remembers of every image: its feature and its cluster; and the clusters' centroids."""

import torch
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.models.clustering.kmeans import cluster_means, kmeans
from ssl_ray.ranges import Channels, Classes, Count, Natural, Rate


class ODCMemory(nn.Module):
    """Samples memory and centroids memory (Zhan et al. 2020, arXiv 2006.10645, section 3.2).

    All three buffers are persistent and equal on every rank: N x dim float32 and N int64, 1.3 GB and 10 MB for
    ImageNet (N = 1.28 M, dim = 256), and num_clusters x dim. Work over all rows is shared out among the ranks.

    Args:
        num_samples: images in the data set, N.
        dim: length of a feature.
        num_clusters: number of labels.
        momentum: weight of the old feature.
        min_cluster: a cluster with fewer images is dissolved.
    """

    features: Tensor
    labels: Tensor
    centroids: Tensor

    def __init__(
        self,
        num_samples: Count,
        dim: Channels,
        num_clusters: Classes,
        momentum: Rate = 0.5,
        min_cluster: Natural = 20,
    ) -> None:
        super().__init__()
        if num_samples < num_clusters:
            raise UserError(
                f"ODCMemory: num_clusters {num_clusters} clusters of {num_samples} images; lower num_clusters"
            )
        self.num_clusters = num_clusters
        self.momentum = momentum
        self.min_cluster = min_cluster
        self.register_buffer("features", torch.zeros(num_samples, dim))
        self.register_buffer("labels", torch.zeros(num_samples, dtype=torch.long))
        self.register_buffer("centroids", torch.zeros(num_clusters, dim))

    @property
    def sizes(self) -> Tensor:
        """Number of images in each cluster, (num_clusters,)."""
        return torch.bincount(self.labels, minlength=self.num_clusters)

    @torch.no_grad()
    def start(self, index: Tensor, features: Tensor, labels: Tensor) -> None:
        """Fills the memory. index, labels: (n,), features: (n, dim), of this rank's images; each is on one rank."""
        for memory, mine in ((self.features, _unit(features)), (self.labels, labels)):
            memory.zero_()
            memory[index] = mine.to(memory.dtype)
            distributed.sum_(memory)
        self.update_centroids()

    @torch.no_grad()
    def propose(self, index: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """What `write` shall put at index (B,) for the features new (B, dim): unit features and their labels.

        The nearest centroid is the one of the largest dot product; centroids are means, not of unit length.
        """
        old = self.features[index]
        features = _unit(self.momentum * old + (1 - self.momentum) * _unit(new).to(old.dtype))
        return features, (features @ self.centroids.T).argmax(1)

    @torch.no_grad()
    def write(self, index: Tensor, features: Tensor, labels: Tensor) -> None:
        """Stores rows. Every rank must pass the same ones."""
        self.features[index] = features
        self.labels[index] = labels

    @torch.no_grad()
    def update_centroids(self) -> None:
        """Centroids become the means of their clusters; that of an empty one stays."""
        means, sizes = cluster_means(
            distributed.local_rows(self.features), distributed.local_rows(self.labels), self.num_clusters
        )
        self.centroids.copy_(torch.where(sizes[:, None] > 0, means, self.centroids))

    @torch.no_grad()
    def dissolve_small_clusters(self) -> None:
        """Images of small clusters go to the nearest other; each emptied label then takes half of the largest cluster.

        Does nothing if every cluster is small: there are too many for the images.
        """
        small = self.sizes < self.min_cluster
        if small.all() or not small.any():
            return
        large = (~small).nonzero().flatten()
        homeless = small[self.labels].nonzero().flatten()
        nearest = (self.features[homeless] @ self.centroids[large].T).argmax(1)
        self.labels[homeless] = large[nearest]
        for emptied in small.nonzero().flatten().tolist():
            largest = int(self.sizes.argmax())
            members = (self.labels == largest).nonzero().flatten()
            if len(members) < 2:
                return
            self.labels[members[self.split(members)]] = emptied
            for cluster in (largest, emptied):
                mean = self.features[self.labels == cluster].mean(0, dtype=torch.float64)
                self.centroids[cluster] = mean.to(self.centroids.dtype)

    def split(self, members: Tensor) -> Tensor:
        """Which of the images `members` (m,) leave, bool (m,): a side of 2-means, or every second if it has but one."""
        mine = distributed.local_rows(members)
        found = kmeans(self.features[mine], 2, seed=0, index=mine)
        leaves = torch.zeros_like(members)
        leaves[distributed.rank() :: distributed.world_size()] = found.assignment
        leave = distributed.sum_(leaves).bool()
        if leave.all() or not leave.any():
            leave = torch.arange(len(members), device=members.device) % 2 == 1
        return leave


def _unit(x: Tensor) -> Tensor:
    """Rows divided by (length + 1e-10), in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    unit: Tensor = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)
    return unit
