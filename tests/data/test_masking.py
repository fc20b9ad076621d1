import numpy as np

from ssl_ray.data.masking import mask_noise
from ssl_ray.data.random import Draws


def removed(noise, ratio=0.75):
    keep = int(len(noise) * (1 - ratio))
    return set(np.argsort(noise, kind="stable")[keep:].tolist())


def test_noise_has_one_number_per_patch():
    noise = mask_noise(Draws(0, 0, 0), 196)
    assert noise.shape == (196,)
    assert noise.dtype == np.float32
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert len(removed(noise)) == 147


def test_noise_depends_on_the_position_of_the_sample_alone():
    position = {"seed": 3, "epoch": 1, "index": 7, "view": 0}
    noise = mask_noise(Draws(**position), 64)
    mask_noise(Draws(3, 1, 8), 64)
    assert np.array_equal(noise, mask_noise(Draws(**position), 64))
    for name in position:
        moved = mask_noise(Draws(**{**position, name: position[name] + 1}), 64)
        assert removed(noise) != removed(moved)


def test_every_patch_is_removed_equally_often():
    counts = np.zeros(16)
    trials = 2000
    for index in range(trials):
        counts[list(removed(mask_noise(Draws(0, 0, index), 16)))] += 1
    # 5 standard deviations of a binomial with p = 0.75
    assert np.abs(counts - 0.75 * trials).max() < 5 * np.sqrt(trials * 0.75 * 0.25)
