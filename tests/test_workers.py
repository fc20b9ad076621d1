"""A group's sizes, and what each worker holds at once."""

import pytest

from ssl_ray.errors import UserError
from ssl_ray.experiments import load
from ssl_ray.recipe import overrides
from ssl_ray.workers import Workers, accumulation

RECIPE = overrides(load("moco").SMALL, {"training.global_batch_size": 12, "training.accumulate": 2})


@pytest.mark.parametrize(("text", "least", "most"), [("16", 16, 16), ("2..16", 2, 16), (" 1..1 ", 1, 1)])
def test_a_number_or_a_range(text: str, least: int, most: int) -> None:
    workers = Workers.parse(text)
    assert (workers.least, workers.most) == (least, most)
    assert Workers.parse(str(workers)) == workers


@pytest.mark.parametrize("text", ["", "0", "two", "3..2", "0..4", "2-4", "2...4", "-1", "1.5"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(
        UserError, match=r"workers: got .*; give a number such as 16, or a range such as 2\.\.16"
    ):
        Workers.parse(text)


def test_a_number_must_divide_the_micro_batch() -> None:
    for count in (1, 2, 3, 6):
        assert Workers.exactly(count).sizes(RECIPE) == (count,)
    for count in (4, 5, 12):
        with pytest.raises(UserError, match=r"workers: .* workers may be 1, 2, 3, 6$"):
            Workers.exactly(count).sizes(RECIPE)


def test_a_range_takes_the_sizes_that_do() -> None:
    assert Workers(2, 5).sizes(RECIPE) == (2, 3)
    assert Workers(1, 16).sizes(RECIPE) == (1, 2, 3, 6)
    with pytest.raises(UserError, match=r"workers: 4\.\.5 x training\.accumulate 2 does not divide"):
        Workers(4, 5).sizes(RECIPE)


def test_micro_batches_are_the_recipes_unless_a_worker_has_too_many_rows() -> None:
    assert [accumulation(RECIPE, w) for w in (1, 2, 3, 6)] == [2, 2, 2, 2]
    bounded = overrides(RECIPE, {"training.max_rows": 2})
    # Rows of a worker: 12, 6, 4, 2; the fewest micro-batches of at most 2 rows that divide them.
    assert [accumulation(bounded, w) for w in (1, 2, 3, 6)] == [6, 6, 2, 2]
    for w in (1, 2, 3, 6):
        rows, count = 12 // w, accumulation(bounded, w)
        assert rows % count == 0
        assert rows // count <= 2
        assert count % 2 == 0
