import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ssl_ray.data import views
from ssl_ray.data.augment.geometry import CenterCrop, RandomResizedCrop, RandomSquare
from ssl_ray.data.augment.rand_augment import RandAugment
from ssl_ray.data.augment.transforms import (
    ColorDropping,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Rotation,
    Solarize,
)
from ssl_ray.data.pipeline import ViewPipeline, make_batch
from ssl_ray.data.view_makers import PatchGrid, SameCrop, View
from ssl_ray.data.views import (
    barlow_twins_views,
    byol_views,
    cae_views,
    deepcluster_views,
    finetune_views,
    mae_views,
    moco_v1_views,
    moco_v2_views,
    moco_v3_views,
    npid_views,
    odc_views,
    plain_views,
    relative_loc_views,
    rotation_views,
    simclr_views,
    simmim_views,
    swav_views,
)
from ssl_ray.errors import UserError
from ssl_ray.names import builtin, import_path
from ssl_ray.spec import Spec
from tests.data.photos import encode, photo

Preset = Callable[..., ViewPipeline]
PRESETS: list[Preset] = [f for name, f in vars(views).items() if name.endswith("_views")]
PHOTO = encode(photo("flower.jpg")[:300, :400], quality=90)
# Settings that fit 32-px views where the defaults do not.
SMALL: dict[Preset, dict[str, Any]] = {
    swav_views: {"small_size": 16},
    relative_loc_views: {"patch_side": 8},
    simmim_views: {"mask_patch_size": 8},
    cae_views: {"token_size": 16, "patch_size": 4, "num_masked": 24, "min_masked": 4},
    finetune_views: {"num_ops": 1, "mixup": 0.8, "cutmix": 1.0},
}

FLIP, GRAY, BLUR = HorizontalFlip(0.5), Grayscale(0.2), GaussianBlur(0.5, (0.1, 2.0))
FULL, FIFTH = RandomResizedCrop((0.08, 1.0)), RandomResizedCrop((0.2, 1.0))
STRONG = (FLIP, ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8), GRAY, BLUR)
BYOL_JITTER = ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8)
BYOL = [
    (FLIP, BYOL_JITTER, GRAY, GaussianBlur(1.0, (0.1, 2.0))),
    (FLIP, BYOL_JITTER, GRAY, GaussianBlur(0.1, (0.1, 2.0)), Solarize(0.2, 128)),
]
MOCO_V1 = View(224, FIFTH, (GRAY, ColorJitter(0.4, 0.4, 0.4, 0.4, p=1.0), FLIP), "bilinear")
MOCO_V2 = View(224, FIFTH, (FLIP, ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), GRAY, BLUR), "bilinear")
TURNED = View(224, FULL, (FLIP, Rotation(2.0), ColorJitter(0.4, 0.4, 1.0, 0.5, p=1.0), GRAY), "bilinear")
PUBLISHED: dict[Preset, list[View]] = {
    moco_v1_views: [MOCO_V1] * 2,
    npid_views: [MOCO_V1],
    moco_v2_views: [MOCO_V2] * 2,
    simclr_views: [View(224, FULL, STRONG, "bicubic")] * 2,
    swav_views: [View(224, RandomResizedCrop((0.14, 1.0)), STRONG, "bilinear")] * 2
    + [View(96, RandomResizedCrop((0.05, 0.14)), STRONG, "bilinear")] * 6,
    byol_views: [View(224, FULL, transforms, "bicubic") for transforms in BYOL],
    barlow_twins_views: [View(224, FULL, transforms, "bicubic") for transforms in BYOL],
    moco_v3_views: [View(224, FULL, transforms, "bilinear") for transforms in BYOL],
    deepcluster_views: [TURNED],
    odc_views: [TURNED],
    rotation_views: [View(224, FULL, (FLIP,), "bilinear")],
    mae_views: [View(224, FIFTH, (FLIP,), "bicubic")],
    finetune_views: [
        View(
            224,
            FULL,
            (FLIP, ColorJitter(0.4, 0.4, 0.4, 0.0, p=1.0), RandAugment(0)),
            "bicubic",
        )
    ],
    simmim_views: [View(192, RandomResizedCrop((0.67, 1.0)), (FLIP,), "bilinear")],
    plain_views: [View(224, CenterCrop(0.875), (), "bilinear")],
}


def contents(pipeline: ViewPipeline) -> list[View]:
    """Its views, without transforms that never do anything."""
    found = []
    for view in pipeline.views:
        assert isinstance(view, View)
        transforms = tuple(t for t in view.transforms if getattr(t, "p", 1) > 0)
        found.append(View(view.size, view.cut, transforms, view.interpolation))
    return found


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_are_those_of_the_papers(preset: Preset) -> None:
    assert contents(preset()) == PUBLISHED[preset]


def test_relative_loc_is_that_of_the_paper() -> None:
    canvas = View(255, RandomSquare(255 / 292), (Grayscale(0.66),), "bilinear")
    assert relative_loc_views().views == (PatchGrid(canvas, 64, 0, (ColorDropping(0.0),)),)


def test_cae_is_that_of_the_paper() -> None:
    expected = SameCrop((View(224, FULL, (FLIP,), "bicubic"), View(112, FULL, (FLIP,), "lanczos")))
    assert cae_views().views == (expected,)


def test_every_preset_is_looked_at() -> None:
    assert set(PRESETS) == {*PUBLISHED, relative_loc_views, cae_views}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_spec_that_survives_json(preset: Preset) -> None:
    assert import_path(preset) == f"ssl_ray.data.views:{preset.__name__}"
    assert builtin()[preset.__name__] is preset
    spec = Spec(preset)
    complete = spec.replace(**spec.defaults())
    assert set(complete.kwargs) == set(inspect.signature(preset).parameters)
    read = Spec.from_json(complete.to_json())
    assert read == complete
    assert read.build().views == preset().views
    assert read.build().columns == preset().columns


def batch(preset: Preset, **settings: Any) -> dict[str, np.ndarray]:
    pipeline = preset(**{"size": 32, **SMALL.get(preset, {}), **settings})
    columns, broken = make_batch(pipeline, [PHOTO] * 12, range(12), seed=0, epoch=0)
    assert not broken
    return columns


@pytest.mark.parametrize("preset", PRESETS)
def test_every_setting_of_a_preset_is_a_plain_value_with_an_effect(preset: Preset) -> None:
    usual = batch(preset)
    for name, parameter in inspect.signature(preset).parameters.items():
        default = SMALL.get(preset, {}).get(name, parameter.default)
        if name.endswith("interpolation"):
            value: Any = "bicubic" if default == "bilinear" else "bilinear"
        elif isinstance(default, int):
            value = {
                "size": 48,
                "num_views": 3,
                "patch_size": 2,
                "patch_side": 2,
                "gap": 2,
                "mask_patch_size": 16,
                "num_ops": 3,
            }.get(name, default - 2)
        elif name in ("degrees", "min_sigma", "max_sigma"):
            value = 1.5
        elif name.endswith("_p"):
            value = 0.95 if default < 0.9 else 0.05
        else:
            value = 0.11
        columns = batch(preset, **{name: value})
        if columns.keys() == usual.keys():
            assert not all(np.array_equal(columns[n], usual[n]) for n in usual), name


@pytest.mark.parametrize("preset", PRESETS)
def test_values_out_of_range_are_refused_as_soon_as_they_are_written(preset: Preset) -> None:
    for name, parameter in inspect.signature(preset).parameters.items():
        if name.endswith("interpolation"):
            wrong: list[Any] = ["nearest", 1]
        elif isinstance(parameter.default, int):
            wrong = [-1, 1.5, True]
        else:
            wrong = [-0.1, float("nan"), "0.5"]
            if not name.endswith("sigma") and name not in ("brightness", "contrast", "saturation"):
                wrong.append(500.0)
        for value in wrong:
            with pytest.raises(UserError, match=f"{preset.__name__}.{name}") as error:
                Spec(preset, **{name: value})
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: moco_v2_views(min_scale=5.0),
        lambda: moco_v2_views(min_sigma=2.5),
        lambda: byol_views(second_blur_p=1.5),
        lambda: simclr_views(hue=0.7),
        lambda: swav_views(small_min_scale=0.2),
        lambda: relative_loc_views(size=96),
        lambda: relative_loc_views(gap=22),
        lambda: simmim_views(size=200),
        lambda: simmim_views(patch_size=5),
        lambda: simmim_views(mask_ratio=1.0),
        lambda: mae_views(patch_size=15),
        lambda: cae_views(patch_size=15),
        lambda: cae_views(num_masked=196),
        lambda: cae_views(num_masked=10),
        lambda: plain_views(crop_fraction=1.1),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_built(make: Preset) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_variant_takes_arguments_like_its_base() -> None:
    assert simclr_views(48).sizes == (48, 48)
    assert simclr_views(48, 3).sizes == (48, 48, 48)
    (view, _) = simclr_views(min_scale=0.5).views
    assert isinstance(view, View)
    assert view.cut == RandomResizedCrop((0.5, 1.0))
    assert STRONG[1] in view.transforms
    with pytest.raises(TypeError):
        simclr_views(nonsense=1)
    assert "SimCLR" in (simclr_views.__doc__ or "")
