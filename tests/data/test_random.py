import itertools
import threading

import numpy as np
import pytest

from ssl_ray.data.random import Draws

MASK = 2**64 - 1


def philox(counter: list[int], key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 from the paper (Salmon et al., 2011, section 3.3), in Python integers."""
    c, k0, k1 = list(counter), *key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(right >> 64) ^ c[1] ^ k0, right & MASK, (left >> 64) ^ c[3] ^ k1, left & MASK]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c


def test_the_reference_itself_gives_the_published_known_answer() -> None:
    # Random123, kat_vectors: philox4x64 10, counter and key zero.
    assert philox([0, 0, 0, 0], (0, 0)) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (3, 17, 123_456_789_012, 1), (2**64 - 1, 1, 5, 2**32)])
def test_numbers_are_philox_of_the_position(place: tuple[int, int, int, int]) -> None:
    seed, epoch, index, view = place
    blocks = (philox([block, index, view, 0], (seed, epoch)) for block in itertools.count(1))
    words = list(itertools.islice(itertools.chain.from_iterable(blocks), 100))
    draws = Draws(seed, epoch, index, view)
    assert [draws.uniform() for _ in range(100)] == [(w >> 11) / 2**53 for w in words]
    assert Draws(seed, epoch, index, view).random((4, 25)).ravel().tolist() == [
        (w >> 11) / 2**53 for w in words
    ]


def test_golden_numbers() -> None:
    draws = Draws(seed=1, epoch=2, index=3, view=0)
    generator = np.random.Generator(np.random.Philox(key=1 + (2 << 64), counter=3 << 64))
    assert [draws.uniform() for _ in range(40)] == generator.random(40).tolist()


def test_any_part_of_the_position_changes_the_numbers() -> None:
    first = {Draws(*place).uniform() for place in itertools.product(range(4), repeat=4)}
    assert len(first) == 4**4


def test_draws_in_turn_and_in_threads_do_not_disturb_each_other() -> None:
    a, b = Draws(0, 0, 0), Draws(0, 0, 1)
    in_turn: list[list[float]] = [[], []]
    for _ in range(100):
        in_turn[0].append(a.uniform())
        in_turn[1].append(b.uniform())
    straight = []
    for i in range(2):
        draws = Draws(0, 0, i)
        straight.append([draws.uniform() for _ in range(100)])
    assert in_turn == straight

    threaded: dict[int, list[float]] = {}

    def work(i: int) -> None:
        draws = Draws(0, 0, i)
        threaded[i] = [draws.uniform() for _ in range(3000)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, numbers in threaded.items():
        draws = Draws(0, 0, i)
        assert numbers == [draws.uniform() for _ in range(3000)]


def test_ranges_and_moments() -> None:
    draws = Draws(0, 0, 0)
    uniform = [draws.uniform(-2.0, 4.0) for _ in range(20_000)]
    assert min(uniform) >= -2.0
    assert max(uniform) < 4.0
    # Standard error of the mean: 6 / sqrt(12 * 20000) = 0.012.
    assert np.mean(uniform) == pytest.approx(1.0, abs=0.05)
    ratio = [draws.log_uniform(3 / 4, 4 / 3) for _ in range(20_000)]
    assert np.mean(np.log(ratio)) == pytest.approx(0.0, abs=0.006)
    assert min(ratio) >= 3 / 4
    assert max(ratio) <= 4 / 3
    integers = [draws.integers(3, 8) for _ in range(20_000)]
    assert np.bincount(integers, minlength=9)[3:8].min() > 3800
    assert sorted(set(integers)) == [3, 4, 5, 6, 7]
    assert np.mean([draws.bernoulli(0.2) for _ in range(20_000)]) == pytest.approx(0.2, abs=0.015)
    assert not any(draws.bernoulli(0.0) for _ in range(1000))
    assert all(draws.bernoulli(1.0) for _ in range(1000))


def test_every_permutation_is_equally_likely() -> None:
    draws = Draws(5, 0, 0)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(24_000):
        order = tuple(draws.permutation(4))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    chi_square = sum((c - 1000) ** 2 / 1000 for c in counts.values())
    assert chi_square < 49.7  # 23 degrees of freedom, 0.1 %


def test_arguments_do_not_move_later_draws() -> None:
    a, b = Draws(0, 0, 7), Draws(0, 0, 7)
    a.bernoulli(0.1), a.uniform(0, 1), a.integers(0, 10), a.log_uniform(1, 2)
    b.bernoulli(0.9), b.uniform(5, 6), b.integers(0, 3), b.log_uniform(3, 4)
    assert a.uniform() == b.uniform()
