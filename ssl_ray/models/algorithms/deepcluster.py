"""DeepCluster (Caron et al. 2018, arXiv 1807.05520)."""

import torch
import torch.nn.functional as F
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
from ssl_ray.models.clustering import Power, class_weights, kmeans, whiten
from ssl_ray.models.encoder import pooled
from ssl_ray.models.heads.cls_head import ClsHead, ClsPrediction
from ssl_ray.ranges import Count, Natural, Seed


class DeepCluster(BaseModel):
    """K-means on the features of all images makes labels, a classifier learns them; again every epoch.

    Features: the backbone's, pooled, of plain views; PCA-whitened and of unit length before k-means (section 3.3).
    Clusters have other names each time, so the classifier starts anew. The authors draw images uniformly over
    clusters; here every image comes once an epoch and weighs 1 / size of its cluster, which has the same expectation:
    without it one large cluster is a trivial solution.

    All of it is spread over the workers, and no one sees all features. Per worker, with N images, W workers, features
    of length D and k clusters: N / W x (D + pca_dim) float32, D x D float64, a centroid's k x pca_dim, and N labels.
    ImageNet (N = 1.28 M) with ResNet-50 (D = 2048, pca_dim = 256, k = 10000) on 8 workers: 1.3 GB of features and
    0.16 GB of whitened ones while clustering, 10 MB of labels always.

    Args:
        backbone, neck: give what the head classifies; without neck the head pools.
        head: a ClsHead; its classes are the clusters.
        num_samples: images in the data set (0: the model only predicts).
        interval: epochs from one clustering to the next.
        pca_dim: length of the whitened features, at most that of the backbone's.
        kmeans_iterations: of Lloyd's algorithm.
        seed: of k-means.
        reweight_power: an image weighs size^-power of its cluster: 1 uniform over clusters, 0 over images.
        weights_sum_to_one: weights as MMSelfSup 1.x scales them, which divides the loss by about the number of
            clusters; by default they average 1 over the images.
        decay_norms: weight decay acts on biases and norms, too, as in the official code.

    `labels` (num_samples,), by `samples["index"]`, and `loss_weight` (clusters,) are in the state dict.
    """

    head: ClsHead
    labels: Tensor
    loss_weight: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        num_samples: Natural,
        neck: nn.Module | None = None,
        interval: Count = 1,
        pca_dim: Count = 256,
        kmeans_iterations: Natural = 20,
        seed: Seed = 0,
        reweight_power: Power = 1.0,
        weights_sum_to_one: bool = False,
        decay_norms: bool = True,
        pretrained: str | None = None,
        data_preprocessor: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, neck, head, pretrained, data_preprocessor)
        self.decay_norms = decay_norms
        clusters = self.head.num_classes
        if 0 < num_samples < clusters:
            raise UserError(
                f"DeepCluster: head.num_classes {clusters} clusters of {num_samples} images; lower head.num_classes"
            )
        self.interval = interval
        self.pca_dim = pca_dim
        self.kmeans_iterations = kmeans_iterations
        self.seed = seed
        self.reweight_power = reweight_power
        self.weights_sum_to_one = weights_sum_to_one
        self.register_buffer("labels", torch.zeros(num_samples, dtype=torch.long))
        uniform = 1 / clusters if weights_sum_to_one else 1.0
        self.register_buffer("loss_weight", torch.full((clusters,), uniform))

    def before_epoch(self, progress: Progress, extract: Extract) -> list[nn.Parameter]:
        """Clusters the data set every `interval` epochs. Returns the classifier's parameters where they are new."""
        if progress.epoch % self.interval:
            return []
        index, features = extract(lambda views: pooled(self.backbone, views[0]))
        features = F.normalize(whiten(features, self.pca_dim), dim=1)
        found = kmeans(
            features,
            self.head.num_classes,
            seed=self.seed + progress.epoch,
            iterations=self.kmeans_iterations,
            index=index,
        )
        # Every image is on one rank: the sum over ranks puts all labels into the order of the data set.
        labels = torch.zeros_like(self.labels)
        labels[index] = found.assignment
        self.labels.copy_(distributed.sum_(labels))
        sizes = torch.bincount(found.assignment, minlength=self.head.num_classes)
        self.loss_weight.copy_(
            class_weights(distributed.sum_(sizes), self.reweight_power, self.weights_sum_to_one)
        )
        self.head.reset()
        for parameter in self.head.parameters():
            distributed.broadcast(parameter.data)  # ranks draw different numbers
        return list(self.head.parameters())

    def cluster_sizes(self) -> Tensor:
        """Images in each cluster, as last clustered."""
        return torch.bincount(self.labels, minlength=self.head.num_classes)

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """The backbone's maps of view 0."""
        maps: tuple[Tensor, ...] = self.backbone(views[0])
        return maps

    def loss(self, views: Views, samples: Samples) -> Output:
        """Weighted cross-entropy of view 0 against its image's cluster."""
        target = self.labels[samples["index"]]
        logits = self.head.logits(self._features(views))
        loss = self.head.loss(logits, target, self.loss_weight)
        return Output(loss, metrics={"cluster_top1": self.head.accuracy(logits, target)})

    def predict(self, views: Views, samples: Samples) -> ClsPrediction:
        """Cluster (B,) of view 0, and the probability of each (B, clusters)."""
        return self.head.predict(self._features(views))

    def param_groups(self) -> list[ParamGroup]:
        """As every model's, with the classifier apart: it does not live long enough to gather momentum."""
        encoder, classifier = apart(super().param_groups(), self.head, momentum=0.0)
        return encoder + classifier

    def _features(self, views: Views) -> Tensor | tuple[Tensor, ...]:
        maps = self.extract_feat(views)
        return maps if self.neck is None else self.neck(maps)
