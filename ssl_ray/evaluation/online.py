"""Evaluation while a run trains: accuracy where labels exist, and what features tell without them always."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_ray import distributed
from ssl_ray.data.pipeline import ViewPipeline
from ssl_ray.data.source import Source
from ssl_ray.evaluation.alarm import IMAGES, NOT_FINITE
from ssl_ray.evaluation.clusters import cluster_metrics
from ssl_ray.evaluation.diagnostics import embedding_rank, embedding_std
from ssl_ray.evaluation.images import AugmentedImages, PlainImages
from ssl_ray.evaluation.knn import knn_accuracy
from ssl_ray.evaluation.lidar import lidar
from ssl_ray.evaluation.probe import linear_accuracy
from ssl_ray.evaluation.spectrum import alpha_req, top_direction
from ssl_ray.evaluation.sphere import alignment, uniformity
from ssl_ray.evaluation.undisturbed import undisturbed
from ssl_ray.evaluation.unit import count_not_finite
from ssl_ray.models.base import BaseModel

_UNLABELLED_SAMPLES = 4096  # enough for spread and rank, where there is no kNN to feed
_LABELLED = ("knn", "linear_probe")
_OF_FEATURES = {
    "std": embedding_std,
    "rankme": embedding_rank,
    "top_direction": top_direction,
    "alpha_req": alpha_req,
    "uniformity": uniformity,
}
_OF_PROJECTIONS = ("std", "rankme", "top_direction")  # a collapse shows there first
_OF_VIEWS = {"alignment": alignment, "lidar": lidar}


@dataclass(frozen=True)
class Seen:
    """What an algorithm made of this rank's images: features (n, D), projections (n, P) where there is a projector,
    images in each cluster (K,) where it assigns any, labels (n,).
    """

    features: Tensor
    projections: Tensor | None
    clusters: Tensor | None
    labels: Tensor


class OnlineEvaluation:
    """Measures an algorithm on held-out images. Made once on each rank; decodes at the first `run`.

    Uses up to `max_samples` images of train (the bank) and of val (the queries), each rank its share of them, in their
    plain view at `size` pixels (see `PlainImages`). Without labels, or without a val split, there is neither kNN nor
    probe; without a val split the rest sees training images. The numbers are the same on any number of ranks, up to
    float order.

    monitors: which of std, rankme, top_direction, alpha_req, uniformity, alignment, lidar, clusters, knn and
    linear_probe to measure.
    views: where the first view of alignment and LiDAR comes from; without it there is neither. They see view_images
    images; alignment sees two views of each, LiDAR lidar_views.

    broken: path -> reason of this rank's images that could not be decoded; they are left out.
    """

    def __init__(
        self,
        train: Source,
        val: Source | None,
        *,
        size: int,
        monitors: Collection[str] = ("std", "rankme", "knn"),
        k: int = 20,
        temperature: float = 0.07,
        max_samples: int = 50000,
        views: ViewPipeline | None = None,
        view_images: int = 1000,
        lidar_views: int = 10,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.monitors = frozenset(monitors)
        self.k = k
        self.temperature = temperature
        self.device = torch.device(device)
        self.autocast = autocast
        self.broken: dict[str, str] = {}
        labelled = val is not None and train.labels() is not None and val.labels() is not None
        limit = max_samples if labelled else min(max_samples, _UNLABELLED_SAMPLES)
        held_out = train if val is None else val
        self._queries = PlainImages(held_out, size, limit, batch_size, self.broken)
        self._bank = PlainImages(train, size, limit, batch_size, self.broken) if labelled else None
        self._augmented = None
        if views is not None and self.monitors & _OF_VIEWS.keys():
            draws = lidar_views if "lidar" in self.monitors else 2
            rows = max(1, batch_size // draws)
            self._augmented = AugmentedImages(
                held_out, views, draws, min(limit, view_images), rows, self.broken
            )

    def run(self, algorithm: BaseModel, *, trained: bool = True) -> dict[str, float]:
        """Measures `algorithm` as it is now. Every rank calls this, and gets the same numbers.

        Returns those of `embedding/std`, `/rankme`, `/top_direction`, `/alpha_req`, `/uniformity`, `/alignment` and
        `/lidar`, of the pooled backbone features, that are asked for; the first three as `projection/...`, too, where
        there is a projector;
        `clusters/...` (see `cluster_metrics`) where there are clusters; `val/knn_top1` and `val/linear_top1`, in 0..1,
        where labels exist. A decay that cannot be fitted is left out. Where features are not finite, what they would
        tell is NaN, accuracies and clusters included, and `not_finite` of `images` says of how many images they are.

        trained: False before the first step, when no image has a cluster yet. The modules' training modes, BN
        statistics and torch's random state are left as they were. Raises UserError if k does not fit the bank.
        """
        with undisturbed(algorithm, self.device):
            seen = self._see(algorithm, self._queries)
            bank = self._learned_from(algorithm)
            lost, images = count_not_finite(seen.features, *([] if bank is None else [bank[0]]))
            metrics = {NOT_FINITE: float(lost), IMAGES: float(images)} if lost else {}
            metrics |= {
                f"embedding/{name}": measure(seen.features)
                for name, measure in _OF_FEATURES.items()
                if name in self.monitors
            }
            if not lost and math.isnan(metrics.get("embedding/alpha_req", 0.0)):
                del metrics["embedding/alpha_req"]
            if seen.projections is not None:
                metrics |= {
                    f"projection/{name}": _OF_FEATURES[name](seen.projections)
                    for name in _OF_PROJECTIONS
                    if name in self.monitors
                }
            if "clusters" in self.monitors and trained:
                found = _clusters(algorithm, seen.clusters)
                assigned = seen.features if seen.projections is None else seen.projections
                metrics |= dict.fromkeys(found, math.nan) if count_not_finite(assigned)[0] else found
            metrics |= self._of_views(algorithm)
            if bank is not None:
                metrics |= self._with_labels(*bank, seen)
        return metrics

    def raw_pixel_knn(self) -> float | None:
        """Accuracy of kNN on the pixels themselves, in 0..1: what training has to beat. None without labels."""
        if self._bank is None or "knn" not in self.monitors:
            return None
        seen = [list(images.batches()) for images in (self._bank, self._queries)]
        # Three equal channels say no more than one, at three times the cost.
        gray = all(bool((x == x[:, :1]).all()) for batches in seen for x, _ in batches)
        gray = not distributed.sum_(torch.tensor(int(not gray), device=self.device))
        bank, queries = (
            torch.cat([(x[:, :1] if gray else x).flatten(1) for x, _ in batches]).to(self.device) / 255
            for batches in seen
        )
        bank_labels, labels = (
            self._labels_of(images, [index for _, index in batches])
            for images, batches in zip((self._bank, self._queries), seen, strict=True)
        )
        return knn_accuracy(bank, bank_labels, queries, labels, self.k, self.temperature)

    def _of_views(self, algorithm: BaseModel) -> dict[str, float]:
        """What several views of an image tell."""
        if self._augmented is None:
            return {}
        batches = []
        for views in self._augmented.batches():
            rows = self._embed(algorithm, torch.cat(views))  # view by view
            batches.append(rows.view(len(views), len(views[0]), rows.shape[1]).transpose(0, 1))
        z = torch.cat(batches)  # (n, V, D)
        seen = {"alignment": z[:, :2], "lidar": z}
        return {
            f"embedding/{name}": measure(seen[name])
            for name, measure in _OF_VIEWS.items()
            if name in self.monitors
        }

    def _learned_from(self, algorithm: BaseModel) -> tuple[Tensor, Tensor] | None:
        """Features (n, D) and labels (n,) of the bank; None where nobody asks for an accuracy."""
        if self._bank is None or not self.monitors & set(_LABELLED):
            return None
        batches, indices = zip(
            *((self._embed(algorithm, view), index) for view, index in self._bank.batches()), strict=True
        )
        return torch.cat(batches), self._labels_of(self._bank, list(indices))

    def _with_labels(self, bank: Tensor, labels: Tensor, seen: Seen) -> dict[str, float]:
        """Accuracies, from the features of the bank."""
        metrics = {}
        if "knn" in self.monitors:
            metrics["val/knn_top1"] = knn_accuracy(
                bank, labels, seen.features, seen.labels, self.k, self.temperature
            )
        if "linear_probe" in self.monitors:
            metrics["val/linear_top1"] = linear_accuracy(bank, labels, seen.features, seen.labels)
        return metrics

    def _labels_of(self, images: PlainImages, indices: list[Tensor]) -> Tensor:
        """Labels (n,) of the images with these indices, -1 where there are none."""
        index = torch.cat(indices)
        labels = images.source.labels()
        found = torch.full_like(index, -1) if labels is None else torch.from_numpy(labels)[index]
        return found.to(self.device)

    def _embed(self, algorithm: BaseModel, view: Tensor) -> Tensor:
        """Features (b, D) of a batch of images."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return algorithm.embed([view.to(self.device, non_blocking=True)]).float()

    def _see(self, algorithm: BaseModel, images: PlainImages) -> Seen:
        """All that one look at this rank's images gives."""
        maps: list[Any] = []
        projector = algorithm.projector
        hook = algorithm.backbone.register_forward_hook(lambda _module, _args, output: maps.append(output))
        features, projections, clusters, indices = [], [], [], []
        try:
            for batch, index in images.batches():
                features.append(self._embed(algorithm, batch))
                if projector is not None:
                    view = [batch.to(self.device)]
                    with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                        # An algorithm whose `embed` goes around the backbone's forward pays for another pass.
                        output = (
                            maps[-1] if maps else algorithm.extract_feat(algorithm.data_preprocessor(view))
                        )
                        projections.append(projector(output).float())
                    if (sizes := algorithm.assign(projections[-1])) is not None:
                        clusters.append(sizes)
                indices.append(index)
                maps.clear()
        finally:
            hook.remove()
        return Seen(
            torch.cat(features),
            torch.cat(projections) if projector is not None else None,
            torch.stack(clusters).sum(dim=0) if clusters else None,
            self._labels_of(images, indices),
        )


def _clusters(algorithm: BaseModel, assigned: Tensor | None) -> dict[str, float]:
    """Metrics of the clusters that the algorithm remembers, else of those it assigns the held-out images to."""
    sizes = algorithm.cluster_sizes()
    if sizes is None and assigned is not None:
        sizes = distributed.sum_(assigned)
    return {} if sizes is None else cluster_metrics(sizes)
