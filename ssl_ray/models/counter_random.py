"""Random numbers that are a pure function of a counter: on any device, in any order, on any number of workers."""

from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed number


def random_bits(counter: Tensor, key: int | Tensor) -> Tensor:
    """64 random bits for each int64 of `counter` + `key` (broadcast): SplitMix64 (Steele et al. 2014, OOPSLA)."""
    x = counter * _GOLDEN + key  # products wrap at 64 bits
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        # torch's shift copies the sign; this one fills with zeros.
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x
