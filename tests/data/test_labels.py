"""Few labels: how many, balanced, fixed by a seed; and who gets to see them."""

import numpy as np
import pytest

from ssl_ray.data.blocks import StreamConfig, make_block
from ssl_ray.data.labels import LabelBudget, LabelledPart
from ssl_ray.data.plan import Plan
from ssl_ray.data.source import open_dataset
from ssl_ray.data.sources.base import Subset
from ssl_ray.data.views import finetune_views, moco_v2_views
from ssl_ray.errors import UserError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [400, 300, 200, 90, 10]))


def counts(budget: str, labels: np.ndarray = LABELS, seed: int = 0) -> list[int]:
    chosen = LabelBudget.parse(budget).choose(labels, seed)
    assert (np.diff(chosen) > 0).all()
    return np.bincount(labels[chosen], minlength=5).tolist()


@pytest.mark.parametrize(
    ("text", "shown", "slug"),
    [
        ("10%", "10%", "10pct"),
        (" 0.5 %", "0.5%", "0.5pct"),
        ("4-shot", "4-shot", "4-shot"),
        ("4shot",) + ("4-shot",) * 2,
    ],
)
def test_what_can_be_written(text: str, shown: str, slug: str) -> None:
    budget = LabelBudget.parse(text)
    assert (str(budget), budget.slug) == (shown, slug)


@pytest.mark.parametrize("text", ["ten", "0%", "101%", "-1%", "0-shot", "10", "1.5-shot"])
def test_what_cannot(text: str) -> None:
    with pytest.raises(UserError, match=r"labels: .*4-shot for 4 images of each class"):
        LabelBudget.parse(text)


def test_classes_share_alike_as_far_as_they_reach() -> None:
    assert counts("1%") == [2] * 5
    assert counts("3%") == [6] * 5
    assert counts("10%") == [22, 22, 23, 23, 10]
    assert counts("50%") == [133, 133, 134, 90, 10]
    assert counts("100%") == [400, 300, 200, 90, 10]
    assert counts("7-shot") == [7] * 5


@pytest.mark.parametrize("percent", [0.1, 1, 2.3, 7, 10, 33, 64.4, 99, 100])
def test_a_share_is_so_many_images_and_no_class_goes_without(percent: float) -> None:
    found = counts(f"{percent}%")
    assert sum(found) == max(5, round(10 * percent))
    assert min(found) >= 1
    # Equal, but for classes that are used up and the one image that does not divide.
    open_classes = [n for n, there in zip(found, [400, 300, 200, 90, 10], strict=True) if n < there]
    assert max(found) - min(open_classes, default=max(found)) <= 1


def test_the_seed_decides_and_less_is_part_of_more() -> None:
    few, many = (LabelBudget.parse(text).choose(LABELS, 3) for text in ("1%", "10%"))
    assert set(few) < set(many)
    np.testing.assert_array_equal(few, LabelBudget.parse("1%").choose(LABELS, 3))
    assert set(few) != set(LabelBudget.parse("1%").choose(LABELS, 4))


def test_images_without_a_label_are_left_out() -> None:
    labels = np.where(np.arange(len(LABELS)) % 2, LABELS, -1)
    chosen = LabelBudget.parse("100%").choose(labels, 0)
    np.testing.assert_array_equal(chosen, np.flatnonzero(labels >= 0))


def test_a_class_too_small_for_the_shots_is_named() -> None:
    with pytest.raises(UserError, match="11-shot needs 11 images of each class, but class boot has 10"):
        LabelBudget.parse("11-shot").choose(LABELS, 0, ("shirt", "dress", "coat", "bag", "boot"))


def test_the_part_is_a_source_of_its_own() -> None:
    whole = open_dataset("digits").train
    part = LabelledPart(whole, LabelBudget.parse("10%"), seed=0)
    labels = whole.labels()
    assert labels is not None
    index = np.array([5, 0, part.info.num_samples - 1])
    assert part.read(index) == whole.read(part.positions[index])
    np.testing.assert_array_equal(part.labels(), labels[part.positions])
    assert part.path(5) == whole.path(int(part.positions[5]))
    digests = {
        LabelledPart(whole, LabelBudget.parse(b), s).info.digest for b in ("10%", "20%") for s in (0, 1)
    }
    assert len(digests | {whole.info.digest}) == 5
    assert part.info.num_samples == 130


def test_only_who_asks_sees_labels() -> None:
    source = Subset(open_dataset("fashion").train, 0, 64)
    plan = Plan(64, 16, seed=1)
    columns, _ = make_block(StreamConfig(source, moco_v2_views(size=28), plan, 4), 0, 2, 0, 1)
    assert set(columns) == {"view_0", "view_1", "index"}

    config = StreamConfig(source, finetune_views(size=28), plan, 4, with_labels=True)
    labels = source.labels()
    assert labels is not None
    whole = make_block(config, 0, 2, 0, 1)[0]
    np.testing.assert_array_equal(whole["label"], labels[whole["index"]])
    halves = [make_block(config, 0, 1, rank, 2)[0]["label"] for rank in (0, 1)]
    np.testing.assert_array_equal(np.stack(halves, 1).ravel(), whole["label"][:16])


def test_a_substitute_brings_its_own_label() -> None:
    source = Subset(open_dataset("fashion").train, 0, 64)

    class Broken(Subset):
        def read(self, indices: np.ndarray) -> list[bytes]:
            return [
                b"no image" if i < 8 else data for i, data in zip(indices, super().read(indices), strict=True)
            ]

    broken = Broken(source, 0, 64)
    config = StreamConfig(broken, finetune_views(size=28), Plan(64, 64, seed=1), 4, with_labels=True)
    columns, failures = make_block(config, 0, 1, 0, 1)
    labels = source.labels()
    assert labels is not None
    assert {failure.index for failure in failures} >= set(range(8))
    assert columns["index"].min() >= 8
    np.testing.assert_array_equal(columns["label"], labels[columns["index"]])
