import inspect
import multiprocessing
import pickle
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ssl_ray.data.augment.transforms import (
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Solarize,
    Transform,
)
from ssl_ray.data.decode import BrokenImage, decode
from ssl_ray.data.random import Draws
from ssl_ray.data.views import (
    Column,
    ViewPipeline,
    mae_views,
    make_batch,
    moco_v1_views,
    moco_v2_views,
    plain_views,
    simclr_views,
)
from tests.data.photos import encode, patch, photo

PRESETS: list[Callable[..., ViewPipeline]] = [
    moco_v1_views,
    moco_v2_views,
    simclr_views,
    mae_views,
    plain_views,
]
BLOBS = [
    encode(photo("china.jpg")[:375, :500], quality=90),
    encode(photo("flower.jpg")[:300, :400], quality=90),
    encode(patch(size=100), "PNG"),
    encode(Image.fromarray(patch("china.jpg", 28)).convert("L"), "PNG"),
]


def checksum(columns: dict[str, np.ndarray]) -> int:
    total = 0
    for name in sorted(columns):
        total = zlib.crc32(np.ascontiguousarray(columns[name]).tobytes(), total)
    return total


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [32, 224])
def test_columns_are_what_is_announced(preset: Callable[..., ViewPipeline], size: int) -> None:
    pipeline = preset(size=size)
    columns, failures = make_batch(pipeline, BLOBS, [5, 6, 7, 8], seed=0, epoch=0)
    assert failures == []
    assert set(columns) == set(pipeline.columns) | {"index"}
    for name, column in pipeline.columns.items():
        assert columns[name].shape == (4, *column.shape)
        assert columns[name].dtype == column.dtype
        assert all(columns[name][i].std() > 0.01 for i in range(4))
    assert pipeline.sizes == (size,) * (1 if preset in (mae_views, plain_views) else 2)
    assert columns["index"].tolist() == [5, 6, 7, 8]
    assert columns["index"].dtype == np.int64


def test_mae_has_a_uniform_number_per_patch() -> None:
    pipeline = mae_views(size=32, patch_size=4)
    assert pipeline.columns == {
        "view_0": Column((32, 32, 3), "uint8"),
        "mask_noise": Column((64,), "float32"),
    }
    noise = np.concatenate(
        [make_batch(pipeline, BLOBS[3:], [i], 0, e)[0]["mask_noise"] for i in range(20) for e in range(5)]
    )
    assert len(np.unique(noise)) > 6390  # float32 numbers may repeat, samples and epochs do not
    assert noise.min() >= 0
    assert noise.max() < 1
    assert noise.mean() == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize("preset", PRESETS)
def test_pixels_depend_on_seed_epoch_index_and_view_alone(preset: Callable[..., ViewPipeline]) -> None:
    pipeline = preset(size=48)
    together, _ = make_batch(pipeline, BLOBS, [10, 11, 12, 13], seed=3, epoch=2)
    order = [2, 0, 3, 1]
    permuted, _ = make_batch(pipeline, [BLOBS[i] for i in order], [10 + i for i in order], seed=3, epoch=2)
    for name in together:
        assert np.array_equal(permuted[name], together[name][order])
    for i, blob in enumerate(BLOBS):
        alone, _ = make_batch(pickle.loads(pickle.dumps(pipeline)), [blob], [10 + i], seed=3, epoch=2)
        for name in together:
            assert np.array_equal(alone[name][0], together[name][i])


def _batch_checksum(pipeline: ViewPipeline) -> int:
    return checksum(make_batch(pipeline, BLOBS, [10, 11, 12, 13], seed=3, epoch=2)[0])


def test_another_process_makes_the_same_pixels() -> None:
    pipeline = simclr_views(size=48)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_batch_checksum, (pipeline,)) == _batch_checksum(pipeline)


@pytest.mark.parametrize("preset", [moco_v1_views, moco_v2_views, simclr_views, mae_views])
def test_other_keys_give_other_views(preset: Callable[..., ViewPipeline]) -> None:
    pipeline = preset(size=48)
    sums = {
        zlib.crc32(make_batch(pipeline, BLOBS[:1], [index], seed, epoch)[0][name][0].tobytes())
        for seed in range(3)
        for epoch in range(3)
        for index in range(3)
        for name in pipeline.columns
    }
    assert len(sums) == 27 * len(pipeline.columns)


def test_plain_views_are_not_random() -> None:
    pipeline = plain_views(size=48)
    first, _ = make_batch(pipeline, BLOBS, [0, 1, 2, 3], seed=0, epoch=0)
    second, _ = make_batch(pipeline, BLOBS, [7, 8, 9, 4], seed=5, epoch=6)
    assert np.array_equal(first["view_0"], second["view_0"])
    square, _ = make_batch(plain_views(size=28, crop_fraction=1.0), BLOBS[3:], [0], 0, 0)
    assert np.array_equal(square["view_0"][0], decode(BLOBS[3]))


@pytest.mark.parametrize("orientation", [1, 6])
def test_write_is_write_image_of_the_decoded_image(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG"):
        data = encode(photo("flower.jpg")[:300, :400], kind, exif=exif)
        pipeline = moco_v2_views(size=224)
        outs = [{n: np.zeros((2, *c.shape), c.dtype) for n, c in pipeline.columns.items()} for _ in range(2)]
        key = {"seed": 1, "epoch": 2, "index": 3, "row": 1}
        pipeline.write(data, out=outs[0], **key)
        pipeline.write_image(decode(data), out=outs[1], **key)
        for name in pipeline.columns:
            assert np.array_equal(outs[0][name], outs[1][name])
            assert not outs[0][name][0].any()


def test_small_views_of_a_large_jpeg_come_from_a_reduced_decode() -> None:
    image = cv2.resize(photo("flower.jpg"), None, fx=3.0, fy=3.0, interpolation=cv2.INTER_CUBIC)
    data = encode(image, quality=95)
    pipeline = mae_views(size=32, patch_size=16)
    drawn = pipeline.draw(*image.shape[:2], seed=0, epoch=0, index=0)
    assert pipeline.reduction(drawn) == 8
    outs = [{n: np.zeros((1, *c.shape), c.dtype) for n, c in pipeline.columns.items()} for _ in range(2)]
    pipeline.write(data, seed=0, epoch=0, index=0, out=outs[0], row=0)
    pipeline.write_image(decode(data), seed=0, epoch=0, index=0, out=outs[1], row=0)
    assert np.array_equal(outs[0]["mask_noise"], outs[1]["mask_noise"])
    # The same box and flip, resampled by the DCT instead of by 2 x 2 means.
    difference = np.abs(outs[0]["view_0"].astype(int) - outs[1]["view_0"])
    assert difference.mean() < 6
    other = np.abs(outs[0]["view_0"].astype(int) - outs[1]["view_0"][:, :, ::-1])
    assert difference.mean() < 0.3 * other.mean()


@pytest.mark.parametrize("size", [224, 300])
def test_no_view_is_enlarged_for_the_sake_of_a_reduced_decode(size: int) -> None:
    pipeline = moco_v2_views(size=size)
    for i in range(300):
        drawn = pipeline.draw(1500, 2000, seed=0, epoch=0, index=i)
        reduce = pipeline.reduction(drawn)
        smallest = min(min(d.box.height, d.box.width) for d in drawn)
        assert reduce == 1 or smallest >= reduce * size
        assert reduce == 8 or smallest < 2 * reduce * size


def test_broken_images_are_reported_with_row_and_reason() -> None:
    whole = BLOBS[0]
    blobs = [whole, b"", whole[: len(whole) // 2], whole, b"no image"]
    columns, failures = make_batch(moco_v2_views(size=32), blobs, [1, 2, 3, 4, 5], seed=0, epoch=0)
    assert [row for row, _ in failures] == [1, 2, 4]
    reasons = dict(failures)
    assert reasons[1] == "empty"
    assert "truncated JPEG" in reasons[2]
    assert "no known image format" in reasons[4]
    assert columns["view_0"][[0, 3]].std() > 1
    assert columns["index"].tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(BrokenImage):
        moco_v2_views(size=32).write(b"", seed=0, epoch=0, index=0, out=columns, row=0)


def settings(pipeline: ViewPipeline) -> tuple[Any, ...]:
    assert len(set(pipeline.views)) == 1
    view = pipeline.views[0]
    return view.size, view.cut.scale, view.interpolation, view.transforms  # type: ignore[attr-defined]


def test_recipes_are_those_of_the_papers() -> None:
    assert settings(moco_v1_views()) == (
        224,
        (0.2, 1.0),
        "bilinear",
        (Grayscale(0.2), ColorJitter(0.4, 0.4, 0.4, 0.4, p=1.0), HorizontalFlip(0.5)),
    )
    transforms = {type(t): t for t in moco_v2_views().views[0].transforms}
    assert moco_v2_views().views[0].cut.scale == (0.2, 1.0)  # type: ignore[attr-defined]
    assert transforms[ColorJitter] == ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
    assert transforms[Grayscale] == Grayscale(0.2)
    assert transforms[GaussianBlur] == GaussianBlur(0.5, (0.1, 2.0))
    assert transforms[HorizontalFlip] == HorizontalFlip(0.5)
    assert transforms.get(Solarize, Solarize(0.0)) == Solarize(0.0)
    transforms = {type(t): t for t in simclr_views().views[0].transforms}
    assert simclr_views().views[0].cut.scale == (0.08, 1.0)  # type: ignore[attr-defined]
    assert transforms[ColorJitter] == ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8)
    assert transforms[GaussianBlur] == GaussianBlur(0.5, (0.1, 2.0))
    assert settings(mae_views()) == (224, (0.2, 1.0), "bicubic", (HorizontalFlip(0.5),))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_setting_of_a_preset_is_a_plain_value_with_an_effect(
    preset: Callable[..., ViewPipeline],
) -> None:
    usual, _ = make_batch(preset(size=32), [BLOBS[1]] * 12, range(12), seed=0, epoch=0)
    for name, parameter in inspect.signature(preset).parameters.items():
        if name == "interpolation":
            value: Any = "bilinear" if parameter.default == "bicubic" else "bicubic"
        elif isinstance(parameter.default, int):
            value = {"size": 40, "num_views": 3, "patch_size": 8}[name]
        else:
            value = 0.95 if name.endswith(("_p", "scale")) and parameter.default != 1.0 else 0.05
        changed, _ = make_batch(
            preset(**{"size": 32, name: value}), [BLOBS[1]] * 12, range(12), seed=0, epoch=0
        )
        assert checksum(changed) != checksum(usual), name


@pytest.mark.parametrize(
    ("transform", "p"),
    [
        (HorizontalFlip(0.3), 0.3),
        (ColorJitter(p=0.8), 0.8),
        (Grayscale(0.2), 0.2),
        (GaussianBlur(0.5), 0.5),
        (Solarize(0.1), 0.1),
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


def test_a_probability_moves_no_other_draw() -> None:
    image = photo("china.jpg")
    blurred = moco_v2_views(blur_p=1.0).draw(*image.shape[:2], seed=0, epoch=0, index=0)
    sharp = moco_v2_views(blur_p=0.0).draw(*image.shape[:2], seed=0, epoch=0, index=0)
    for a, b in zip(blurred, sharp, strict=True):
        assert a.box == b.box
        blur = moco_v2_views().views[0].transforms.index(GaussianBlur(0.5))
        assert isinstance(a.params[blur], float)
        assert b.params[blur] is None
        assert a.params[:blur] + a.params[blur + 1 :] == b.params[:blur] + b.params[blur + 1 :]
