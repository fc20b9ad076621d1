import tracemalloc
from itertools import islice

import numpy as np
import pytest

from ssl_ray.data.plan import Permutation, Plan, philox
from ssl_ray.errors import UserError


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # The known answers published with Random123 (kat_vectors, philox4x32, 10 rounds).
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected):
    words = [np.array([c], np.uint64) for c in counter]
    assert [int(word[0]) for word in philox(*words, key[0] | key[1] << 32)] == expected


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 1000, 1024, 1025, 7000, 8192, 8193, 65536, 65537])
def test_permutation_is_a_bijection(size):
    for seed, epoch in [(0, 0), (1, 3), (2**63 + 5, 2**31)]:
        assert np.array_equal(np.sort(Permutation(size, seed, epoch)(np.arange(size))), np.arange(size))


def test_permutation_of_a_slice_is_the_slice_of_the_permutation():
    permutation = Permutation(7000, 5)
    assert np.array_equal(permutation(np.arange(7000))[123:456], permutation(np.arange(123, 456)))
    assert permutation(np.arange(6).reshape(2, 3)).shape == (2, 3)
    assert permutation(np.arange(0)).shape == (0,)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        Permutation(7000, seed, epoch)(np.arange(7000)) for seed in (0, 1, 2**32) for epoch in (0, 1, 2)
    ]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            # Two random orders agree in one place on average; more than 10 happens once in 10**8.
            assert (a == b).sum() <= 10


def test_positions_are_uniform():
    # Chi-square of (entry, position) over 10 x 10 cells, 200 epochs of N = 100: 81 degrees of freedom, as the sums
    # are fixed. Mean 81, deviation 12.7 (times N / (N - 1)); the bound 150 is passed once in 10**6 draws.
    counts = np.zeros((10, 10))
    for epoch in range(200):
        order = Permutation(100, 0, epoch)(np.arange(100))
        np.add.at(counts, (np.arange(100) // 10, order // 10), 1)
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert 40 < chi_square < 150


def test_neighbours_are_independent():
    # Serial correlation of a random order of N is about normal with deviation 1 / sqrt(N) = 0.0032; five of them.
    order = Permutation(100_000, 1)(np.arange(100_000)).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.016
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.016


def test_all_orders_of_four_occur_about_equally_often():
    # 24 orders in 720 epochs: 23 degrees of freedom, the bound 70 is passed once in 10**6 draws.
    orders = [tuple(Permutation(4, 0, epoch)(np.arange(4)).tolist()) for epoch in range(720)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 24
    assert ((counts - 30) ** 2 / 30).sum() < 70


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_global_batch_row_by_row(world_size):
    plan = Plan(1000, 64, seed=3)
    for step in (0, 14, 15, 40):
        rows = plan.global_indices(step)
        assert rows.shape == (64,)
        assert rows.dtype == np.int64
        parts = [plan.indices(step, rank, world_size) for rank in range(world_size)]
        assert np.array_equal(np.stack(parts, axis=1).ravel(), rows)


def test_an_epoch_sees_no_sample_twice_and_leaves_out_the_remainder():
    plan = Plan(1000, 64, seed=3)
    assert plan.steps_per_epoch == 15
    assert plan.total_steps(3) == 45
    for epoch in (0, 1):
        steps = range(epoch * 15, (epoch + 1) * 15)
        assert {plan.epoch(step) for step in steps} == {epoch}
        seen = np.concatenate([plan.global_indices(step) for step in steps])
        assert len(set(seen.tolist())) == 960
        assert set(seen.tolist()) <= set(range(1000))


def test_a_run_from_step_k_equals_the_tail():
    def stream(first):
        plan, step = Plan(500, 50, seed=7), first
        while True:
            yield plan.global_indices(step)
            step += 1

    whole = list(islice(stream(0), 25))
    for k in (1, 9, 10, 17):
        assert all(np.array_equal(a, b) for a, b in zip(whole[k:], islice(stream(k), 25 - k), strict=True))


def test_a_billion_samples_cost_no_more_than_the_batch():
    plan = Plan(10**9, 4096, seed=0)
    plan.global_indices(0)
    tracemalloc.start()
    rows = plan.global_indices(plan.steps_per_epoch * 3 - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(rows.tolist())) == 4096
    assert rows.min() >= 0
    assert rows.max() < 10**9
    assert peak < 4 * 2**20


def test_the_order_is_fixed_for_good():
    # A change of these numbers breaks the resumption of every run in progress.
    assert Plan(7000, 8, seed=0).global_indices(0).tolist() == [
        1974,
        2190,
        6120,
        3622,
        4747,
        5885,
        6337,
        4388,
    ]
    assert Plan(7000, 8, seed=0).global_indices(875).tolist() == [
        462,
        1159,
        5713,
        1792,
        1679,
        4778,
        2763,
        6874,
    ]


def test_substitutes_are_other_samples_and_depend_on_each_argument():
    plan = Plan(50, 10, seed=1)
    base = [plan.substitute(0, index, 0) for index in range(50)]
    assert all(0 <= other < 50 and other != index for index, other in enumerate(base))
    assert base == [plan.substitute(0, index, 0) for index in range(50)]
    assert base != [plan.substitute(1, index, 0) for index in range(50)]
    assert base != [plan.substitute(0, index, 1) for index in range(50)]
    assert base != [Plan(50, 10, seed=2).substitute(0, index, 0) for index in range(50)]
    reached = {plan.substitute(0, 7, attempt) for attempt in range(600)}
    assert reached == set(range(50)) - {7}
    assert Plan(1, 1, seed=0).substitute(0, 0, 0) == 0


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda: Plan(10, 11, 0), "global_batch_size: got 11, the data set has 10 samples; use at most 10"),
        (lambda: Plan(10, 0, 0), "global_batch_size: got 0, must be at least 1"),
        (lambda: Plan(10, 6, 0).indices(0, 0, 4), "global_batch_size: got 6, which 4 workers .* such as 4"),
        (lambda: Plan(10, 3, 0).indices(0, 0, 4), "such as 4"),
    ],
)
def test_impossible_batches_are_refused(plan, message):
    with pytest.raises(UserError, match=message):
        plan()
