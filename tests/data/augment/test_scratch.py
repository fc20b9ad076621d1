import threading

import numpy as np

from ssl_ray.data.augment.scratch import keep_freed_memory, scratch


def test_memory_is_used_again_and_grows() -> None:
    first = scratch("test", (4, 5))
    assert first.shape == (4, 5)
    assert first.dtype == np.uint8
    assert np.shares_memory(first, scratch("test", (2, 3, 3)))
    assert scratch("test", (10, 10)).size == 100
    assert not np.shares_memory(scratch("test", (4,)), scratch("another", (4,)))
    huge = scratch("test", (1 << 24, 2))
    assert not np.shares_memory(huge, scratch("test", (1 << 24, 2)))  # not kept


def test_threads_have_memory_of_their_own() -> None:
    mine = scratch("test", (8,))
    theirs: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: theirs.append(scratch("test", (8,))))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, theirs[0])


def test_keeping_freed_memory_can_be_asked_for_twice() -> None:
    keep_freed_memory()
    keep_freed_memory()
