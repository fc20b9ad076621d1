"""What the trained network makes of images: features, nearest neighbours, a map in two dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_ray.data.source import Dataset, Source
from ssl_ray.evaluation.images import PlainImages
from ssl_ray.evaluation.undisturbed import undisturbed
from ssl_ray.models.base import BaseModel
from ssl_ray.trained.report.pictures import PIXELS

_PCA_WIDTH = 50  # t-SNE gets so many principal components, as its authors advise
_PERPLEXITY = 30.0
_BATCH, _LARGE_BATCH = 256, 32  # of images up to 64 px, and of larger ones

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Embedded:
    """images: (n, S, S, 3) uint8. index: (n,) in the source. features: (n, D) float32. labels: (n,) or None."""

    images: np.ndarray
    index: np.ndarray
    features: Tensor
    labels: np.ndarray | None
    names: Sequence[str] | None

    def name(self, i: int) -> str:
        """The class of image i in words; "" without labels."""
        return "" if self.labels is None else class_name(int(self.labels[i]), self.names)


@dataclass(frozen=True)
class Neighbours:
    """One query and its nearest images. similarity: cosine, in order. right: of the query's class; None: no labels."""

    query: int
    found: Sequence[int]
    similarity: Sequence[float]
    right: Sequence[bool | None]


@dataclass(frozen=True)
class Map:
    """xy: (n, 2), each axis in 0..1. note: what the axes are."""

    name: str
    xy: Array
    note: str


def class_name(label: int, names: Sequence[str] | None) -> str:
    """What a class is called: its name, or its number."""
    return names[label] if names is not None and 0 <= label < len(names) else str(label)


def embed(algorithm: BaseModel, source: Source, *, size: int, count: int, broken: dict[str, str]) -> Embedded:
    """Pooled features of up to `count` images of a source in their plain view; see `PlainImages` for which ones."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    algorithm.to(device)
    batch_size = _BATCH if size <= PIXELS else _LARGE_BATCH
    images, index, features = [], [], []
    with undisturbed(algorithm, device):
        for batch, numbers in PlainImages(source, size, count, batch_size, broken).batches():
            if len(batch):
                features.append(algorithm.embed([batch.to(device)]).float().cpu())
                images.append(batch.permute(0, 2, 3, 1).numpy())
                index.append(numbers.numpy())
    labels = source.labels()
    numbers_ = np.concatenate(index)
    return Embedded(
        np.concatenate(images),
        numbers_,
        torch.cat(features),
        None if labels is None else labels[numbers_],
        source.info.class_names,
    )


def embed_both(
    algorithm: BaseModel, dataset: Dataset, *, size: int, bank: int, queries: int, broken: dict[str, str]
) -> tuple[Embedded, Embedded]:
    """Training images to find neighbours among, and held-out images to ask with; without these, training images."""
    found = embed(algorithm, dataset.train, size=size, count=bank, broken=broken)
    if dataset.val is None:
        return found, found
    return found, embed(algorithm, dataset.val, size=size, count=queries, broken=broken)


def nearest(queries: Embedded, bank: Embedded, k: int) -> list[Neighbours]:
    """The k images of the bank with the largest cosine similarity to each query; an image is not its own neighbour."""
    similarity = F.normalize(queries.features, dim=1) @ F.normalize(bank.features, dim=1).T
    if queries is bank:
        similarity.fill_diagonal_(-torch.inf)
    k = min(k, len(bank.index) - (queries is bank))
    values, found = similarity.topk(k, dim=1)
    known = queries.labels is not None and bank.labels is not None
    return [
        Neighbours(
            query,
            row.tolist(),
            value.tolist(),
            [bool(bank.labels[j] == queries.labels[query]) if known else None for j in row.tolist()],  # type: ignore[index]
        )
        for query, (row, value) in enumerate(zip(found, values, strict=True))
    ]


def one_of_each(queries: Embedded, count: int) -> list[int]:
    """`count` queries, one of each class in turn; without labels evenly spread."""
    total = len(queries.index)
    if queries.labels is None:
        return [int(i) for i in np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))]
    seen: dict[int, int] = {}
    turn = [0] * total
    for i, label in enumerate(queries.labels.tolist()):
        turn[i] = seen.get(label, 0)
        seen[label] = turn[i] + 1
    ranked = sorted(range(total), key=lambda i: (turn[i], int(queries.labels[i])))  # type: ignore[index]
    first = sum(t == 0 for t in turn)
    # Of more classes than there is room for, some from all over.
    if first > count:
        ranked = [ranked[i] for i in np.linspace(0, first - 1, count).astype(int)]
    return ranked[:count]


def maps(features: Tensor) -> list[Map]:
    """The features in two dimensions: by PCA, which is linear, and by t-SNE, which keeps neighbourhoods.

    features: (n, D); made unit length first, as kNN compares them. Fewer than 8 rows give PCA alone, fewer than 3 none.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    x = F.normalize(features, dim=1).double().numpy()
    if len(x) < 3 or x.shape[1] < 2 or not np.isfinite(x).all() or np.ptp(x, axis=0).max() == 0:
        return []
    pca = PCA(min(_PCA_WIDTH, *x.shape), random_state=0)
    reduced = pca.fit_transform(x)
    share = 100 * pca.explained_variance_ratio_
    drawn = [
        Map(
            "PCA",
            _unit(reduced[:, :2]),
            f"The first two components hold {share[0]:.0f} % and {share[1]:.0f} %.",
        )
    ]
    if len(x) >= 8:
        perplexity = min(_PERPLEXITY, (len(x) - 1) / 3)
        # Of so few points its threads spend their time waiting for one another: seven times as much on a busy machine.
        with threadpool_limits(1):
            tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
        note = f"Perplexity {perplexity:.0f}; distances between far groups mean little."
        drawn.append(Map("t-SNE", _unit(tsne), note))
    return drawn


def _unit(xy: np.ndarray) -> Array:
    """Each axis to 0..1."""
    xy = np.asarray(xy, np.float64)
    low, high = xy.min(axis=0), xy.max(axis=0)
    unit: Array = (xy - low) / np.maximum(high - low, 1e-12)
    return unit
