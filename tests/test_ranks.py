"""The pool of ranks that other tests use: what it says of one that fails, and that it goes on afterwards."""

import os
import time
from collections.abc import Iterator

import pytest

from ssl_ray import distributed
from tests.ranks import RankFailed, Ranks


@pytest.fixture
def pool() -> Iterator[Ranks]:
    """One of its own, for it is broken here."""
    pool = Ranks(timeout=60)
    yield pool
    pool.close()


def whoami() -> tuple[int, int, int]:
    return distributed.rank(), distributed.world_size(), os.getpid()


def second_fails() -> None:
    if distributed.rank() == 1:
        raise ValueError("on purpose")
    distributed.barrier()  # with nobody


def second_dies() -> None:
    if distributed.rank() == 1:
        os._exit(1)
    distributed.barrier()


def never_ends() -> None:
    time.sleep(600)


def test_each_call_is_a_group_of_its_own_in_living_processes(pool: Ranks) -> None:
    two, four = pool(2, whoami), pool(4, whoami)
    assert [rank[:2] for rank in two + four] == [(0, 2), (1, 2), (0, 4), (1, 4), (2, 4), (3, 4)]
    assert [pid for *_, pid in four[:2]] == [pid for *_, pid in two]
    assert len({os.getpid(), *(pid for *_, pid in four)}) == 5


def test_a_failure_is_told_with_its_traceback_and_the_next_call_succeeds(pool: Ranks) -> None:
    with pytest.raises(RankFailed, match=r"(?s)rank 1 of 2:.*in second_fails.*ValueError: on purpose"):
        pool(2, second_fails)
    with pytest.raises(RankFailed, match="rank 1 of 2 died"):
        pool(2, second_dies)
    pool.timeout = 0.5
    with pytest.raises(RankFailed, match=r"ranks \[0, 1\] did not end in 0\.5 s"):
        pool(2, never_ends)
    pool.timeout = 60
    assert [rank[0] for rank in pool(2, whoami)] == [0, 1]
