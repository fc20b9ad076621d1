import pytest
import torch

from ssl_ray.evaluation.clusters import cluster_metrics


def test_equal_clusters() -> None:
    metrics = cluster_metrics(torch.full((8,), 5))
    assert metrics == pytest.approx(
        {"clusters/occupancy": 1, "clusters/perplexity": 8, "clusters/largest": 0.125}
    )


def test_one_cluster_holds_all() -> None:
    metrics = cluster_metrics(torch.tensor([0, 40, 0, 0]))
    assert metrics == pytest.approx(
        {"clusters/occupancy": 0.25, "clusters/perplexity": 1, "clusters/largest": 1}
    )


def test_uneven_clusters() -> None:
    metrics = cluster_metrics(torch.tensor([6, 3, 3, 0]))  # entropy 1.5 bits
    assert metrics == pytest.approx(
        {"clusters/occupancy": 0.75, "clusters/perplexity": 2**1.5, "clusters/largest": 0.5}
    )


def test_no_images_no_metrics() -> None:
    assert cluster_metrics(torch.zeros(3, dtype=torch.int64)) == {}
