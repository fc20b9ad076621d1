"""The plan: which sample goes where at global step s. A pure function of (num_samples, global_batch_size, seed).

Legend: N samples, G rows in a global batch, W workers. Epoch e has its own order of the N samples; step s takes G
consecutive entries of it, and rank r of W takes every W-th of those, starting at r. To resume at step s is to ask
for step s; to change W changes only who computes which rows. The N mod G samples at the end of an epoch's order are
left out of that epoch (they differ from epoch to epoch).
"""

from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from ssl_ray.errors import UserError

Int64 = NDArray[np.int64]
Words = NDArray[np.uint64]  # 32-bit words kept in uint64, so that products do not overflow

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
# Feistel rounds. Four rounds of a good function hide the order from an adversary (Luby and Rackoff, 1988); we
# double that because the halves are small.
_ROUNDS = 8
# Streams: the purposes that one seed is used for never share a counter.
_ORDER, _SUBSTITUTE, _HOLDOUT, _LABELS = 0, 1, 2, 3


def philox(c0: Words, c1: Words, c2: Words, c3: Words, key: int) -> tuple[Words, Words, Words, Words]:
    """Philox-4x32-10: four pseudo-random 32-bit words for each 128-bit counter. Vectorised over the counters.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
    c0..c3: words below 2**32, broadcastable. key: 64 bits, low word first.
    """
    key0, key1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0 = product1 >> _HALF ^ c1 ^ np.uint64(key0)
        c2 = product0 >> _HALF ^ c3 ^ np.uint64(key1)
        c1, c3 = product1 & _LOW, product0 & _LOW
        key0, key1 = key0 + 0x9E3779B9 & 0xFFFFFFFF, key1 + 0xBB67AE85 & 0xFFFFFFFF
    return c0, c1, c2, c3


def _word(value: int) -> Words:
    return np.array([value & 0xFFFFFFFF], np.uint64)


@dataclass(frozen=True)
class Permutation:
    """A keyed permutation of 0..size-1 that is computed entry by entry and never stored.

    A Feistel network on Z_a x Z_b with a * b just above `size` (Black and Rogaway, "Ciphers with arbitrary finite
    domains", CT-RSA 2002): the halves are shifted in turn by a Philox function of the other half. What falls outside
    0..size-1 is sent through again (cycle walking), which happens to fewer than one entry in sqrt(size).
    Any slice costs time and memory in proportion to the slice. size: up to 2**62. epoch: below 2**32.
    """

    size: int
    seed: int
    epoch: int = 0
    stream: int = _ORDER

    def __call__(self, positions: Int64) -> Int64:
        """Entries of the permutation at `positions`, each in 0..size-1; same shape."""
        entries = self._shuffle(positions.astype(np.uint64).ravel())
        while (outside := np.flatnonzero(entries >= self.size)).size:
            entries[outside] = self._shuffle(entries[outside])
        return entries.astype(np.int64).reshape(positions.shape)

    def _shuffle(self, x: Words) -> Words:
        a = isqrt(self.size - 1) + 1
        b = -(-self.size // a)
        left, right = np.divmod(x, np.uint64(b))
        for i in range(0, _ROUNDS, 2):
            left = (left + self._function(i, right)) % np.uint64(a)
            right = (right + self._function(i + 1, left)) % np.uint64(b)
        return left * np.uint64(b) + right

    def _function(self, i: int, half: Words) -> Words:
        low, high, _, _ = philox(half, _word(i), _word(self.stream), _word(self.epoch), self.seed)
        # Less than 2**63, so that the sum with the other half cannot overflow.
        return (high >> np.uint64(1)) << _HALF | low


def holdout_permutation(size: int) -> Permutation:
    """The fixed order whose first entries are held out of a data set without a split of its own."""
    return Permutation(size, seed=0, stream=_HOLDOUT)


def label_permutation(size: int, seed: int) -> Permutation:
    """The order in which images are given their labels, where only some have one."""
    return Permutation(size, seed, stream=_LABELS)


@dataclass(frozen=True)
class Plan:
    """Who sees what, when. Raises UserError when no full batch can be made.

    num_samples: N. global_batch_size: G, rows of one optimiser step over all workers. seed: 64 bits are used.
    """

    num_samples: int
    global_batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.global_batch_size < 1:
            raise UserError(f"global_batch_size: got {self.global_batch_size}, must be at least 1")
        if self.global_batch_size > self.num_samples:
            raise UserError(
                f"global_batch_size: got {self.global_batch_size}, the data set has {self.num_samples} samples; "
                f"use at most {self.num_samples}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass, N // G."""
        return self.num_samples // self.global_batch_size

    def total_steps(self, epochs: int) -> int:
        """Steps in `epochs` passes."""
        return epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that `step` belongs to."""
        return step // self.steps_per_epoch

    def global_indices(self, step: int) -> Int64:
        """(G,) sample indices of a step's global batch, in row order."""
        return self.indices(step, 0, 1)

    def indices(self, step: int, rank: int, world_size: int) -> Int64:
        """(G // W,) sample indices of one rank: rows [rank::W] of the batch. UserError if W does not divide G."""
        assert step >= 0, step
        assert 0 <= rank < world_size, (rank, world_size)
        if self.global_batch_size % world_size:
            fits = self.global_batch_size // world_size * world_size or world_size
            raise UserError(
                f"global_batch_size: got {self.global_batch_size}, which {world_size} workers cannot share equally; "
                f"use a multiple of {world_size}, such as {fits}"
            )
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        start = step_of_epoch * self.global_batch_size
        positions = np.arange(start + rank, start + self.global_batch_size, world_size, dtype=np.int64)
        return Permutation(self.num_samples, self.seed, epoch)(positions)

    def substitute(self, epoch: int, index: int, attempt: int) -> int:
        """Another sample for a broken one: never `index` itself, unless there is no other. attempt: 0, 1, 2, ..."""
        if self.num_samples == 1:
            return index
        # The last word holds the epoch as in Permutation; the stream sits beside the attempt, which is small.
        counter = (_word(index), _word(index >> 32), _word(_SUBSTITUTE | attempt << 8), _word(epoch))
        low, high, _, _ = philox(*counter, self.seed)
        shift = (int(high[0]) << 32 | int(low[0])) % (self.num_samples - 1)
        return (index + 1 + shift) % self.num_samples
