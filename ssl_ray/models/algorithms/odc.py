"""ODC, online deep clustering (Zhan et al. 2020, arXiv 2006.10645)."""

import torch
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.models.base import (
    BaseModel,
    Extract,
    Output,
    ParamGroup,
    Progress,
    Samples,
    Views,
    apart,
)
from ssl_ray.models.clustering import Power, class_weights, kmeans
from ssl_ray.models.dropout import dropout_scale
from ssl_ray.models.heads.cls_head import ClsHead, ClsPrediction
from ssl_ray.models.memories.odc_memory import ODCMemory
from ssl_ray.models.necks.odc_neck import ODCNeck
from ssl_ray.ranges import Count, Natural, Seed


class ODC(BaseModel):
    """DeepCluster without its stops: clusters move a little at every step, and so do the labels.

    K-means over all images makes the first labels. At a step an image is classified as the memory has it; after the
    step the memory averages its feature with the new one, and the nearest centroid is its label from then on.
    Centroids follow every few steps, clusters that got too small are dissolved, and images weigh less the larger
    their cluster (section 3.3).

    Args:
        neck: an ODCNeck; its output is what is clustered.
        head: a ClsHead; its classes are the clusters.
        memory: an ODCMemory of as many clusters.
        centroids_interval, small_clusters_interval: steps from one update of the centroids, and from one look for
            small clusters, to the next.
        kmeans_iterations: of Lloyd's algorithm, before the first epoch.
        seed: of that k-means.
        reweight_power: an image weighs size^-power of its cluster.
        weights_sum_to_one: weights as MMSelfSup 1.x scales them, which divides the loss by about the number of
            clusters; by default they average 1 over the images, as in OpenSelfSup they do over a batch.
        decay_norms: weight decay acts on biases and norms, too, as in the official code.

    Reads `samples["dropout_scale"]` (B, neck.hid_channels), 0 or 1 / (1 - neck.dropout), where given; else draws it.
    """

    neck: ODCNeck
    head: ClsHead
    loss_weight: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        memory: ODCMemory,
        centroids_interval: Count = 10,
        small_clusters_interval: Count = 1,
        kmeans_iterations: Natural = 20,
        seed: Seed = 0,
        reweight_power: Power = 0.5,
        weights_sum_to_one: bool = False,
        decay_norms: bool = True,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        self.decay_norms = decay_norms
        clusters, dim = memory.centroids.shape
        if self.head.num_classes != clusters or self.neck.out_channels != dim:
            raise UserError(
                f"ODC: memory of {clusters} clusters, {dim}-d, does not fit head.num_classes {self.head.num_classes} "
                f"and neck.out_channels {self.neck.out_channels}; give both the same"
            )
        self.memory = memory
        self.centroids_interval = centroids_interval
        self.small_clusters_interval = small_clusters_interval
        self.kmeans_iterations = kmeans_iterations
        self.seed = seed
        self.reweight_power = reweight_power
        self.weights_sum_to_one = weights_sum_to_one
        uniform = 1 / clusters if weights_sum_to_one else 1.0
        self.register_buffer("loss_weight", torch.full((clusters,), uniform))

    def before_epoch(self, progress: Progress, extract: Extract) -> None:
        """Before the first epoch: features of all images, k-means, and the memory filled with them."""
        if progress.epoch > 0:
            return
        index, features = extract(lambda views: self.neck(self.backbone(views[0])))
        found = kmeans(
            nn.functional.normalize(features, dim=1),
            self.memory.num_clusters,
            seed=self.seed,
            iterations=self.kmeans_iterations,
            index=index,
        )
        self.memory.start(index, features, found.assignment)
        self.memory.dissolve_small_clusters()  # an empty one among them
        self._reweight()

    def cluster_sizes(self) -> Tensor:
        """Images in each cluster, as the memory has them now."""
        return self.memory.sizes

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """The backbone's maps of view 0."""
        maps: tuple[Tensor, ...] = self.backbone(views[0])
        return maps

    def loss(self, views: Views, samples: Samples) -> Output:
        """Weighted cross-entropy of view 0 against its image's label. State: index (B,), and what memory shall hold.

        `change_ratio` is the share of images whose label changes: it should fall; `cluster_top1` that of images
        classified as labelled.
        """
        index = samples["index"]
        target = self.memory.labels[index]
        features = self.neck(self.extract_feat(views), self._dropout_scale(len(index), samples))
        loss = self.head(features, target, self.loss_weight)
        with torch.autocast(index.device.type, enabled=False):
            rows, labels = self.memory.propose(index, features.detach())
        return Output(
            loss,
            metrics={
                "change_ratio": (labels != target).to(loss.dtype).mean(),
                "cluster_top1": self.head.accuracy(self.head.logits(features.detach()), target),
            },
            state={"index": index, "features": rows, "labels": labels},
        )

    def predict(self, views: Views, samples: Samples) -> ClsPrediction:
        """Cluster (B,) of view 0, and the probability of each (B, clusters)."""
        return self.head.predict(self.neck(self.extract_feat(views)))

    def after_step(self, state: dict[str, Tensor], progress: Progress) -> None:
        """Writes the memory with the rows of all ranks, then tends the clusters and their weights."""
        self.memory.write(*(distributed.gather(state[name]) for name in ("index", "features", "labels")))
        self.tend_clusters(progress.step + 1)

    def param_groups(self) -> list[ParamGroup]:
        """As every model's, with the classifier apart: without momentum, as labels change under it."""
        encoder, classifier = apart(super().param_groups(), self.head, momentum=0.0)
        return encoder + classifier

    def tend_clusters(self, steps: int) -> None:
        """What the clusters need when `steps` steps are done: centroids, no small ones, new weights."""
        if steps % self.centroids_interval == 0:
            self.memory.update_centroids()
        if steps % self.small_clusters_interval == 0:
            self.memory.dissolve_small_clusters()
        self._reweight()

    def _reweight(self) -> None:
        self.loss_weight.copy_(class_weights(self.memory.sizes, self.reweight_power, self.weights_sum_to_one))

    def _dropout_scale(self, rows: int, samples: Samples) -> Tensor | None:
        """(rows, hid_channels), None where nothing is dropped."""
        if not self.training or self.neck.dropout == 0:
            return None
        if "dropout_scale" in samples:
            return samples["dropout_scale"]
        return dropout_scale(rows, (self.neck.hid_channels,), self.neck.dropout, samples["index"].device)
