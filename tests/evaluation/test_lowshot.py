import pytest
import torch

from ssl_ray.evaluation.lowshot import n_shot, share_of, smallest_class

LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 2, 2, 2, 1] * 20)


@pytest.mark.parametrize("n", [1, 4, 16])
def test_n_of_each_class(n: int) -> None:
    rows = n_shot(LABELS, n, 0)
    assert torch.bincount(LABELS[rows]).tolist() == [n, n, n]
    assert len(rows.unique()) == len(rows)
    assert torch.equal(n_shot(LABELS, n, 0), rows)
    assert not torch.equal(n_shot(LABELS, n, 1), rows)


def test_fewer_are_part_of_more() -> None:
    assert set(n_shot(LABELS, 2, 5).tolist()) < set(n_shot(LABELS, 8, 5).tolist())


def test_shares_keep_the_classes_balance() -> None:
    assert torch.bincount(LABELS[share_of(LABELS, 0.1, 0)]).tolist() == [4, 6, 10]
    assert torch.bincount(LABELS[share_of(LABELS, 0.001, 0)]).tolist() == [1, 1, 1]


def test_smallest_class() -> None:
    assert smallest_class(LABELS) == 40
    assert smallest_class(torch.tensor([0, 2, 2])) == 1  # class 1 has no image at all
