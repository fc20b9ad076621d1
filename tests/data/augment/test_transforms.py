import numpy as np
import pytest

from ssl_ray.data.augment.transforms import (
    ColorDropping,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Rotation,
    Solarize,
    Transform,
)
from ssl_ray.data.random import Draws
from ssl_ray.errors import UserError
from tests.data.photos import patch


@pytest.mark.parametrize(
    ("transform", "p"),
    [
        (HorizontalFlip(0.3), 0.3),
        (ColorJitter(p=0.8), 0.8),
        (Grayscale(0.2), 0.2),
        (GaussianBlur(0.5), 0.5),
        (Solarize(0.1), 0.1),
        (ColorDropping(0.6), 0.6),
    ],
)
def test_transforms_apply_with_their_probability(transform: Transform, p: float) -> None:
    applied = [transform.draw(Draws(0, 0, i)) is not None for i in range(4000)]
    assert np.mean(applied) == pytest.approx(p, abs=4 * (p * (1 - p) / 4000) ** 0.5)


def test_jitter_draws_torchvisions_ranges_and_every_order() -> None:
    jitter = ColorJitter(0.4, 1.5, 0.2, 0.1, p=1.0)
    drawn = [jitter.draw(Draws(0, 0, i)) for i in range(3000)]
    assert all(d is not None for d in drawn)
    values = np.array([d[:4] for d in drawn if d is not None])
    assert values.min(0) == pytest.approx([0.6, 0.0, 0.8, -0.1], abs=0.01)
    assert values.max(0) == pytest.approx([1.4, 2.5, 1.2, 0.1], abs=0.01)
    assert len({d.order for d in drawn if d is not None}) == 24


def test_rotation_draws_both_directions_evenly() -> None:
    angles = np.array([Rotation(2.0).draw(Draws(0, 0, i)) for i in range(3000)])
    assert angles.min() == pytest.approx(-2, abs=0.01)
    assert angles.max() == pytest.approx(2, abs=0.01)
    assert angles.mean() == pytest.approx(0, abs=4.5 * (4 / 12**0.5) / 3000**0.5)
    assert Rotation(0.0).draw(Draws(0, 0, 0)) is None


def test_dropped_colours_are_faint_noise_about_their_means() -> None:
    dropping = ColorDropping(1.0)
    kept = []
    for i in range(60):
        view, params = patch(), dropping.draw(Draws(0, 0, i))
        assert params is not None
        dropping.apply(view, params)
        again = patch()
        dropping.apply(again, params)
        assert np.array_equal(view, again)
        kept.append(params.kept)
        for channel in range(3):
            if channel == params.kept:
                assert np.array_equal(view[..., channel], patch()[..., channel])
                continue
            assert view[..., channel].mean() == pytest.approx(patch()[..., channel].mean(), abs=0.5)
            # A hundredth of the deviation of the channel that stays, and rounding to whole levels.
            assert view[..., channel].std() <= patch()[..., params.kept].std() / 100 + 0.5
    assert set(kept) == {0, 1, 2}


def test_noise_of_dropped_colours_has_its_deviation() -> None:
    checks = np.indices((224, 224)).sum(0) % 2
    view = np.stack([255 * checks, 0 * checks + 90, 0 * checks + 200], axis=2).astype(np.uint8)
    dropping = ColorDropping(1.0)
    params = next(p for i in range(50) if (p := dropping.draw(Draws(0, 0, i))) and p.kept == 0)
    dropping.apply(view, params)
    # 1.275, and 1/12 for rounding.
    assert view[..., 1].std() == pytest.approx((1.275**2 + 1 / 12) ** 0.5, rel=0.05)
    assert view[..., 1].mean() == pytest.approx(90, abs=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda: HorizontalFlip(1.1),
        lambda: Grayscale(-0.1),
        lambda: ColorJitter(p=2.0),
        lambda: ColorJitter(brightness=-0.1),
        lambda: ColorJitter(saturation=-1.0),
        lambda: ColorJitter(hue=0.6),
        lambda: GaussianBlur(-1.0),
        lambda: GaussianBlur(0.5, (0.0, 1.0)),
        lambda: GaussianBlur(0.5, (2.0, 1.0)),
        lambda: Solarize(float("nan")),
        lambda: Rotation(-1.0),
        lambda: Rotation(181.0),
        lambda: ColorDropping(1.5),
    ],
)
def test_ranges_are_checked(make: type) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
