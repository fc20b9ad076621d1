"""Evaluation while a run trains: kNN accuracy where labels exist, collapse diagnostics always."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.data.plan import Permutation
from ssl_ray.data.source import Source
from ssl_ray.data.views import make_batch, plain_views
from ssl_ray.evaluation.diagnostics import collapse_message, embedding_rank, embedding_std
from ssl_ray.evaluation.knn import knn_accuracy
from ssl_ray.models.base import BaseModel
from ssl_ray.models.necks import LinearNeck, NonLinearNeck

_UNLABELLED_SAMPLES = 4096  # enough for spread and rank, where there is no kNN to feed
_KEEP_BYTES = (
    4 << 30
)  # decoded images of one split stay in memory up to this size; more are decoded at each run
_THREADS = min(8, os.cpu_count() or 1)
_PIECE = 32  # images that a thread decodes at a time

Indices = NDArray[np.int64]
Decoded = Future[tuple[dict[str, np.ndarray], list[tuple[int, str]]]]


class OnlineEvaluation:
    """Measures an algorithm on held-out images. Made once on each rank; decodes at the first `run`.

    Uses up to `max_samples` images of train (the bank) and of val (the queries), each rank every W-th of them: drawn
    without repetition by a fixed permutation, so that a folder sorted by class gives every class its share. Images
    are resized and centre-cropped to `size` pixels; those not larger than that are not cropped. Without labels, or
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
        self._queries = _Images(train if val is None else val, size, limit, batch_size, self.broken)
        self._bank = _Images(train, size, limit, batch_size, self.broken) if labelled else None

    def run(self, algorithm: BaseModel) -> dict[str, float]:
        """Measures `algorithm` as it is now. Every rank calls this, and gets the same numbers.

        Returns `embedding/std` and `embedding/rankme` of the pooled backbone features; `projection/std` where the
        neck is a projector; `val/knn_top1`, in 0..1, where labels exist. The modules' training modes, BN statistics
        and torch's random state are left as they were. Raises UserError if k does not fit the bank.
        """
        with _undisturbed(algorithm, self.device):
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
                torch.cat([y for _, y in batches]),
            )
            for batches in (list(self._bank.batches()), list(self._queries.batches()))
        )
        return knn_accuracy(
            bank, bank_labels.to(self.device), queries, labels.to(self.device), self.k, self.temperature
        )

    def _embed(self, algorithm: BaseModel, images: "_Images") -> tuple[Tensor, Tensor | None, Tensor]:
        """Features (n, D), projections (n, P) where there is a projector, labels (n,) of this rank's images."""
        maps: list[Any] = []
        projector = algorithm.neck if isinstance(algorithm.neck, LinearNeck | NonLinearNeck) else None
        hook = algorithm.backbone.register_forward_hook(lambda _module, _args, output: maps.append(output))
        features, projections, labels = [], [], []
        try:
            for batch, label in images.batches():
                view = [batch.to(self.device, non_blocking=True)]
                with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                    features.append(algorithm.embed(view).float())
                    if projector is not None:
                        # An algorithm whose `embed` goes around the backbone's forward pays for another pass.
                        output = (
                            maps[-1] if maps else algorithm.extract_feat(algorithm.data_preprocessor(view))
                        )
                        projections.append(projector(output).float())
                labels.append(label)
                maps.clear()
        finally:
            hook.remove()
        projection = torch.cat(projections) if projector is not None else None
        return torch.cat(features), projection, torch.cat(labels).to(self.device)


class _Images:
    """This rank's share of up to `limit` images of a source, decoded once and kept where they fit."""

    def __init__(
        self, source: Source, size: int, limit: int, batch_size: int, broken: dict[str, str]
    ) -> None:
        total = source.info.num_samples
        chosen = np.sort(Permutation(total, seed=0)(np.arange(min(limit, total))))
        indices = chosen[distributed.rank() :: distributed.world_size()]
        self._chunks = np.split(indices, range(batch_size, len(indices), batch_size))
        self._source = source
        self._labels = source.labels()
        # "Resize 256, crop 224" where the images are larger.
        self._pipeline = plain_views(size, crop_fraction=0.875 if min(source.info.image_size) > size else 1.0)
        self._broken = broken
        self._keep = len(indices) * size * size * 3 <= _KEEP_BYTES
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (b, 3, size, size) uint8, channels last in memory, and labels (b,) int64, -1 where there are none."""
        if self._kept is not None:
            yield from self._kept
            return
        kept = []
        for batch in self._decode():
            if self._keep:
                kept.append(batch)
            yield batch
        self._kept = kept if self._keep else None

    def _decode(self) -> Iterator[tuple[Tensor, Tensor]]:
        with ThreadPoolExecutor(_THREADS) as pool:
            # The next chunk is under way while this one is in use.
            under_way = self._start(pool, self._chunks[0])
            for chunk, following in zip(self._chunks, [*self._chunks[1:], None], strict=True):
                futures = under_way
                if following is not None:
                    under_way = self._start(pool, following)
                yield self._collect(chunk, futures)

    def _start(self, pool: ThreadPoolExecutor, chunk: Indices) -> list[Decoded]:
        blobs = self._source.read(chunk)
        pieces = [slice(i, i + _PIECE) for i in range(0, max(1, len(chunk)), _PIECE)]
        return [pool.submit(make_batch, self._pipeline, blobs[p], chunk[p], 0, 0) for p in pieces]

    def _collect(self, chunk: Indices, futures: list[Decoded]) -> tuple[Tensor, Tensor]:
        whole = np.ones(len(chunk), bool)
        images = []
        for first, future in zip(range(0, max(1, len(chunk)), _PIECE), futures, strict=True):
            columns, failures = future.result()
            images.append(columns["view_0"])
            for row, reason in failures:
                whole[first + row] = False
                self._broken[self._source.path(int(chunk[first + row]))] = reason
        labels = np.full(len(chunk), -1) if self._labels is None else self._labels[chunk]
        view = torch.from_numpy(np.concatenate(images)[whole])
        return view.permute(0, 3, 1, 2), torch.from_numpy(labels[whole].astype(np.int64))


@contextmanager
def _undisturbed(algorithm: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module's mode and torch's random state are as before."""
    modes = {module: module.training for module in algorithm.modules()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        algorithm.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
