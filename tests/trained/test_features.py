"""Neighbours and maps of features, against scikit-learn on the same numbers."""

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from ssl_ray.trained.report.features import Embedded, class_name, maps, nearest, one_of_each


def embedded(features: np.ndarray, labels: list[int] | None = None) -> Embedded:
    count = len(features)
    return Embedded(
        np.zeros((count, 4, 4, 3), np.uint8),
        np.arange(count),
        torch.from_numpy(features).float(),
        None if labels is None else np.array(labels),
        None,
    )


def test_neighbours_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    bank, asked = rng.normal(size=(60, 8)), rng.normal(size=(9, 8))
    labels, asked_labels = rng.integers(0, 3, 60).tolist(), rng.integers(0, 3, 9).tolist()
    found = nearest(embedded(asked, asked_labels), embedded(bank, labels), k=5)
    distance, index = NearestNeighbors(n_neighbors=5, metric="cosine").fit(bank).kneighbors(asked)
    assert [n.found for n in found] == index.tolist()
    assert np.allclose([n.similarity for n in found], 1 - distance, atol=1e-6)
    right = [[labels[j] == asked_labels[q] for j in row] for q, row in enumerate(index)]
    assert [n.right for n in found] == right


def test_an_image_is_not_its_own_neighbour() -> None:
    same = embedded(np.random.default_rng(0).normal(size=(5, 3)))
    found = nearest(same, same, k=8)
    assert all(n.query not in n.found and len(n.found) == 4 for n in found)
    assert found[0].right == [None] * 4, "without labels nothing is right or wrong"


def test_queries_come_from_every_class() -> None:
    labels = [0] * 50 + [1] * 3 + [2] * 7
    chosen = one_of_each(embedded(np.zeros((60, 2)), labels), 7)
    assert sorted(labels[i] for i in chosen) == [0, 0, 0, 1, 1, 2, 2]
    assert len(set(chosen)) == 7
    many = one_of_each(embedded(np.zeros((100, 2)), list(range(100))), 5)
    assert many == [0, 24, 49, 74, 99], "of more classes than rows, some from all over"
    assert one_of_each(embedded(np.zeros((3, 2))), 8) == [0, 1, 2]


def test_pca_is_scikit_learns() -> None:
    x = np.random.default_rng(0).normal(size=(40, 6)) @ np.diag([5, 3, 1, 1, 1, 1])
    pca, _ = maps(torch.from_numpy(x).float())
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = PCA(2).fit_transform(unit)
    for axis in range(2):
        assert abs(np.corrcoef(pca.xy[:, axis], expected[:, axis])[0, 1]) > 0.9999
        assert pca.xy[:, axis].min() == 0
        assert abs(pca.xy[:, axis].max() - 1) < 1e-9
    share = 100 * PCA(2).fit(unit).explained_variance_ratio_
    assert f"{share[0]:.0f} % and {share[1]:.0f} %" in pca.note


def test_tsne_keeps_neighbourhoods_and_is_the_same_each_time() -> None:
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(4, 10))
    x = (centres[:, None] + rng.normal(size=(4, 25, 10))).reshape(100, 10)
    features = torch.from_numpy(x).float()
    _, tsne = maps(features)
    assert tsne.name == "t-SNE"
    assert trustworthiness(x / np.linalg.norm(x, axis=1, keepdims=True), tsne.xy, n_neighbors=5) > 0.9
    assert np.array_equal(tsne.xy, maps(features)[1].xy)


def test_no_map_of_what_has_no_two_dimensions() -> None:
    assert maps(torch.ones(20, 4)) == [], "collapsed"
    assert maps(torch.full((20, 4), float("nan"))) == []
    assert maps(torch.randn(2, 4)) == []
    assert [m.name for m in maps(torch.randn(5, 4))] == ["PCA"], "too few for t-SNE"


def test_class_names() -> None:
    assert [class_name(i, ("cat", "dog")) for i in (0, 1, 2)] == ["cat", "dog", "2"]
    assert class_name(7, None) == "7"
