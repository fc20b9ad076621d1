"""Evaluation while a run trains: kNN accuracy where labels exist, collapse diagnostics always."""

from typing import Any

import torch
from torch import Tensor

from ssl_ray.data.source import Source
from ssl_ray.evaluation.diagnostics import collapse_message, embedding_rank, embedding_std
from ssl_ray.evaluation.images import PlainImages
from ssl_ray.evaluation.knn import knn_accuracy
from ssl_ray.evaluation.undisturbed import undisturbed
from ssl_ray.models.base import BaseModel
from ssl_ray.models.necks import LinearNeck, NonLinearNeck

_UNLABELLED_SAMPLES = 4096  # enough for spread and rank, where there is no kNN to feed


class OnlineEvaluation:
    """Measures an algorithm on held-out images. Made once on each rank; decodes at the first `run`.

    Uses up to `max_samples` images of train (the bank) and of val (the queries), each rank its share of them, in their
    plain view at `size` pixels (see `PlainImages`). Without labels, or
    without a val split, there is no kNN; without a val split the diagnostics see training images. The numbers are the
    same on any number of ranks, up to float order.

    broken: path -> reason of this rank's images that could not be decoded; they are left out.
    warning: after a `run`, the line to show when the representation collapses, else None.
    """

    def __init__(
        self,
        train: Source,
        val: Source | None,
        *,
        size: int,
        k: int = 20,
        temperature: float = 0.07,
        max_samples: int = 50000,
        device: torch.device | str = "cpu",
        batch_size: int = 256,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.device = torch.device(device)
        self.autocast = autocast
        self.broken: dict[str, str] = {}
        self.warning: str | None = None
        labelled = val is not None and train.labels() is not None and val.labels() is not None
        limit = max_samples if labelled else min(max_samples, _UNLABELLED_SAMPLES)
        self._queries = PlainImages(train if val is None else val, size, limit, batch_size, self.broken)
        self._bank = PlainImages(train, size, limit, batch_size, self.broken) if labelled else None

    def run(self, algorithm: BaseModel) -> dict[str, float]:
        """Measures `algorithm` as it is now. Every rank calls this, and gets the same numbers.

        Returns `embedding/std` and `embedding/rankme` of the pooled backbone features; `projection/std` where the
        neck is a projector; `val/knn_top1`, in 0..1, where labels exist. The modules' training modes, BN statistics
        and torch's random state are left as they were. Raises UserError if k does not fit the bank.
        """
        with undisturbed(algorithm, self.device):
            features, projections, labels = self._embed(algorithm, self._queries)
            metrics = {"embedding/std": embedding_std(features), "embedding/rankme": embedding_rank(features)}
            if projections is None:
                self.warning = collapse_message(metrics["embedding/std"], features.shape[1])
            else:
                metrics["projection/std"] = embedding_std(projections)
                self.warning = collapse_message(metrics["projection/std"], projections.shape[1])
            if self._bank is not None:
                bank, _, bank_labels = self._embed(algorithm, self._bank)
                metrics["val/knn_top1"] = knn_accuracy(
                    bank, bank_labels, features, labels, self.k, self.temperature
                )
        return metrics

    def raw_pixel_knn(self) -> float | None:
        """Accuracy of kNN on the pixels themselves, in 0..1: what training has to beat. None without labels."""
        if self._bank is None:
            return None
        (bank, bank_labels), (queries, labels) = (
            (
                torch.cat([x.flatten(1) for x, _ in batches]).to(self.device) / 255,
                self._labels_of(images, [index for _, index in batches]),
            )
            for images, batches in ((i, list(i.batches())) for i in (self._bank, self._queries))
        )
        return knn_accuracy(bank, bank_labels, queries, labels, self.k, self.temperature)

    def _labels_of(self, images: PlainImages, indices: list[Tensor]) -> Tensor:
        """Labels (n,) of the images with these indices, -1 where there are none."""
        index = torch.cat(indices)
        labels = images.source.labels()
        found = torch.full_like(index, -1) if labels is None else torch.from_numpy(labels)[index]
        return found.to(self.device)

    def _embed(self, algorithm: BaseModel, images: PlainImages) -> tuple[Tensor, Tensor | None, Tensor]:
        """Features (n, D), projections (n, P) where there is a projector, labels (n,) of this rank's images."""
        maps: list[Any] = []
        projector = algorithm.neck if isinstance(algorithm.neck, LinearNeck | NonLinearNeck) else None
        hook = algorithm.backbone.register_forward_hook(lambda _module, _args, output: maps.append(output))
        features, projections, indices = [], [], []
        try:
            for batch, index in images.batches():
                view = [batch.to(self.device, non_blocking=True)]
                with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                    features.append(algorithm.embed(view).float())
                    if projector is not None:
                        # An algorithm whose `embed` goes around the backbone's forward pays for another pass.
                        output = (
                            maps[-1] if maps else algorithm.extract_feat(algorithm.data_preprocessor(view))
                        )
                        projections.append(projector(output).float())
                indices.append(index)
                maps.clear()
        finally:
            hook.remove()
        projection = torch.cat(projections) if projector is not None else None
        return torch.cat(features), projection, self._labels_of(images, indices)
