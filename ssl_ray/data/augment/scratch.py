"""Memory that is used again from image to image.

A fresh array of a few hundred KB can cost more than most operations on it: where the allocator hands such blocks
back to the system, every page of the next one faults anew (250 faults, half of the time of decoding a 500 x 375 JPEG).
"""

import functools
import math
import threading

import numpy as np

_KEEP = 1 << 24  # bytes; larger requests are rare and get memory of their own


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.memory: dict[str, np.ndarray] = {}


_scratch = _Scratch()


def scratch(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised uint8 array of `shape`; valid until this thread asks for `name` again."""
    count = math.prod(shape)
    memory = _scratch.memory.get(name)
    if memory is None or memory.size < count:
        memory = np.empty(count, np.uint8)
        if count <= _KEEP:
            _scratch.memory[name] = memory
    return memory[:count].reshape(shape)


@functools.cache
def keep_freed_memory() -> None:
    """Has glibc keep freed blocks of up to 32 MB for the next image; elsewhere without effect.

    Its thresholds adapt: freeing a block that was mapped by itself raises the size from which blocks are mapped to
    that block's, and the free memory from which the heap is trimmed to twice as much (man 3 mallopt, M_MMAP_THRESHOLD).
    The block is never touched, so it takes no memory itself.
    """
    np.empty(31 << 20, np.uint8)  # freed at once
