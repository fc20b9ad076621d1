import itertools
import math

import pytest

from ssl_ray.models.base import Progress
from ssl_ray.recipe import Optimization
from ssl_ray.spec import Spec
from ssl_ray.training.optim import SGD
from ssl_ray.training.schedules import learning_rate, warmup_steps


def rates(steps_per_epoch, epochs, **fields):
    optimization = Optimization(optimizer=Spec(SGD), base_lr=1.0, **fields)
    total = steps_per_epoch * epochs
    return [
        learning_rate(optimization, Progress(s, total, s // steps_per_epoch, epochs)) for s in range(total)
    ]


def test_warmup_and_cosine_equal_mmselfsup():
    # Recorded from MMSelfSup 1.0 (linear warm-up of 2 epochs from 1e-4, then cosine, by iteration): 6 epochs of 5.
    recorded = [6e-05, 0.06672, 0.13338, 0.20004, 0.2667, 0.33336, 0.40002, 0.46668, 0.53334, 0.6, 0.6]
    recorded += [
        0.5963065021785415,
        0.5853169548885463,
        0.5673019572565106,
        0.5427050983124845,
        0.5121320343559644,
    ]
    got = rates(5, 6, lr=0.6, warmup_epochs=2)
    assert got[: len(recorded)] == pytest.approx(recorded, rel=1e-12)


def test_cosine_starts_at_the_peak_is_half_way_in_the_middle_and_never_rises():
    got = rates(4, 10, lr=0.2, final_lr=0.02)
    assert got[0] == 0.2
    assert got[20] == pytest.approx(0.11)
    assert all(a > b for a, b in itertools.pairwise(got))
    assert got[-1] == pytest.approx(0.02 + 0.18 * (1 + math.cos(math.pi * 39 / 40)) / 2)


def test_steps_fall_at_the_first_step_of_each_milestone_epoch():
    got = rates(3, 10, lr=0.03, schedule="step", milestones=(4, 7), gamma=0.1)
    assert got == pytest.approx([0.03] * 12 + [0.003] * 9 + [0.0003] * 9)


def test_constant_stays_after_its_warmup():
    got = rates(10, 4, lr=0.2, schedule="constant", warmup_epochs=1, warmup_start=0.1)
    assert got[0] == pytest.approx(0.02)
    assert got[9:] == [0.2] * 31


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_a_warmup_of_one_step_and_of_the_whole_run(schedule):
    assert rates(1, 3, lr=1.0, schedule=schedule, warmup_epochs=1)[:2] == pytest.approx([1e-4, 1.0])
    whole = rates(5, 2, lr=1.0, schedule=schedule, warmup_epochs=2)
    assert whole[-1] == pytest.approx(1.0)
    assert all(a < b for a, b in itertools.pairwise(whole))


def test_warmup_in_epochs_may_be_a_fraction():
    assert warmup_steps(0.5, Progress(0, 100, 0, 10)) == 5
    assert warmup_steps(0, Progress(0, 100, 0, 10)) == 0
