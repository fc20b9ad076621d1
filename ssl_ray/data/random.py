"""Random draws that depend on position alone: (seed, epoch, sample index, view), never on order or process."""

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

_BATCH = 32  # words made at once; a view needs about 20
_TO_UNIT = 2.0**-53
_WORD = 2**64 - 1


class _Engine(threading.local):
    """One Philox per thread, moved to wherever a `Draws` reads: making a new one costs ten times as much."""

    def __init__(self) -> None:
        self.counter = np.zeros(4, np.uint64)
        self.key = np.zeros(2, np.uint64)
        self.state: Any = {
            "bit_generator": "Philox",
            "state": {"counter": self.counter, "key": self.key},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,  # empty: the next number comes from the next counter
            "has_uint32": 0,
            "uinteger": 0,
        }
        self.philox = np.random.Philox(key=0)


_engine = _Engine()


class Draws:
    """The random numbers of one view of one sample in one epoch.

    Philox4x64-10 (Salmon et al., 2011) with key (seed, epoch) and 256-bit counter (block, index, view, 0), lowest word
    first, starting at block 1; a number in [0, 1) is the upper 53 bits of a word. Nothing else enters, so the
    numbers are the same on any machine, in any order, after any restart.

    Every call takes a fixed count of numbers, whatever its arguments: changing a probability or a range moves no later
    draw. Exception: a call with a size (`random(shape)`, `permutation(n)`) takes as many as its size asks for.
    """

    __slots__ = ("_block", "_counter", "_key", "_next")

    def __init__(self, seed: int, epoch: int, index: int, view: int = 0) -> None:
        self._key = seed & _WORD, epoch & _WORD
        self._counter = index & _WORD, view & _WORD, 0
        self._block = 0
        self._next = self._numbers().__next__

    def _words(self, count: int) -> np.ndarray:
        """The next `count` words, (count,) uint64; what is left of the last block's four is skipped."""
        engine = _engine
        engine.key[:] = self._key
        engine.counter[0] = self._block
        engine.counter[1:] = self._counter
        engine.philox.state = engine.state
        self._block += -(-count // 4)
        words: np.ndarray = engine.philox.random_raw(count)
        return words

    def _numbers(self) -> Iterator[float]:
        while True:
            for word in self._words(_BATCH).tolist():
                yield (word >> 11) * _TO_UNIT

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number in [low, high)."""
        return low + (high - low) * self._next()

    def log_uniform(self, low: float, high: float) -> float:
        """One number in [low, high) whose logarithm is uniform."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def integers(self, low: int, high: int) -> int:
        """One integer in [low, high)."""
        return low + int((high - low) * self._next())

    def bernoulli(self, p: float) -> bool:
        """True with probability p."""
        return self._next() < p

    def permutation(self, n: int) -> list[int]:
        """The integers 0 .. n-1 in random order (Fisher-Yates)."""
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.integers(0, i + 1)
            order[i], order[j] = order[j], order[i]
        return order

    def random(self, shape: int | tuple[int, ...]) -> np.ndarray:
        """An array of numbers in [0, 1), float64, from blocks of its own."""
        count = shape if isinstance(shape, int) else math.prod(shape)
        return ((self._words(count) >> np.uint64(11)) * _TO_UNIT).reshape(shape)
