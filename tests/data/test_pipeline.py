import multiprocessing
import pickle
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from ssl_ray.data.augment.geometry import CenterCrop, RandomResizedCrop
from ssl_ray.data.augment.transforms import GaussianBlur
from ssl_ray.data.decode import BrokenImage, decode
from ssl_ray.data.masking import RandomCellMask
from ssl_ray.data.pipeline import ViewPipeline, make_batch
from ssl_ray.data.view_makers import PatchGrid, SameCrop, View
from ssl_ray.data.views import (
    cae_views,
    mae_views,
    moco_v2_views,
    plain_views,
    relative_loc_views,
    swav_views,
)
from tests.data.photos import encode, patch, photo

# Every kind of view and column.
PIPELINES = {
    "two alike": moco_v2_views(size=48),
    "two sizes": swav_views(size=48, small_size=24, num_small=3),
    "one crop, and a mask": cae_views(size=48, token_size=24, patch_size=4, num_masked=50, min_masked=8),
    "patches": relative_loc_views(size=72, patch_side=20, gap=2, drop_p=0.5),
    "noise": mae_views(size=48),
    "plain": plain_views(size=48),
}
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


@pytest.mark.parametrize("name", PIPELINES)
def test_columns_are_what_is_announced(name: str) -> None:
    pipeline = PIPELINES[name]
    columns, failures = make_batch(pipeline, BLOBS, [5, 6, 7, 8], seed=0, epoch=0)
    assert failures == []
    views = [f"view_{i}" for i in range(len(pipeline.sizes))]
    assert list(columns) == [*views, *pipeline.extras, "index"]
    for column, expected in pipeline.columns.items():
        assert columns[column].shape == (4, *expected.shape)
        assert columns[column].dtype == expected.dtype
    for view, size in zip(views, pipeline.sizes, strict=True):
        assert columns[view].shape == (4, size, size, 3)
    assert all(columns["view_0"][i].std() > 0.01 for i in range(4))
    assert columns["index"].tolist() == [5, 6, 7, 8]
    assert columns["index"].dtype == np.int64


@pytest.mark.parametrize("name", PIPELINES)
def test_pixels_depend_on_seed_epoch_index_and_view_alone(name: str) -> None:
    pipeline = PIPELINES[name]
    together, _ = make_batch(pipeline, BLOBS, [10, 11, 12, 13], seed=3, epoch=2)
    order = [2, 0, 3, 1]
    permuted, _ = make_batch(pipeline, [BLOBS[i] for i in order], [10 + i for i in order], seed=3, epoch=2)
    for column in together:
        assert np.array_equal(permuted[column], together[column][order])
    for i, blob in enumerate(BLOBS):
        alone, _ = make_batch(pickle.loads(pickle.dumps(pipeline)), [blob], [10 + i], seed=3, epoch=2)
        for column in together:
            assert np.array_equal(alone[column][0], together[column][i])


def _batch_checksum(pipeline: ViewPipeline) -> int:
    return checksum(make_batch(pipeline, BLOBS, [10, 11, 12, 13], seed=3, epoch=2)[0])


@pytest.mark.process
def test_another_process_makes_the_same_pixels() -> None:
    pipelines = list(PIPELINES.values())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_batch_checksum, pipelines) == [_batch_checksum(p) for p in pipelines]


@pytest.mark.parametrize("name", [n for n in PIPELINES if n != "plain"])
def test_other_keys_give_other_views(name: str) -> None:
    pipeline = PIPELINES[name]
    seen: dict[str, set[bytes]] = {column: set() for column in pipeline.columns}
    for seed in range(3):
        for epoch in range(3):
            for index in range(3):
                columns, _ = make_batch(pipeline, BLOBS[:1], [index], seed, epoch)
                for column in seen:
                    seen[column].add(columns[column].tobytes())
    assert all(len(values) == 27 for values in seen.values())


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


def test_extras_draw_apart_from_views() -> None:
    view, mask = View(48, RandomResizedCrop()), RandomCellMask(6, 1, 0.5)
    without = make_batch(ViewPipeline([view]), BLOBS, range(4), 0, 0)[0]
    together = make_batch(ViewPipeline([view], {"mask": mask}), BLOBS, range(4), 0, 0)[0]
    assert np.array_equal(together["view_0"], without["view_0"])
    more = make_batch(ViewPipeline([view, view], {"mask": mask}), BLOBS, range(4), 0, 0)[0]
    assert np.array_equal(more["mask"], together["mask"])


def test_evaluation_takes_the_whole_image() -> None:
    assert relative_loc_views(size=255).eval_size == 255
    assert relative_loc_views(size=255).sizes == (64,) * 9
    assert moco_v2_views(size=48).eval_size == 48
    assert swav_views().eval_size == swav_views().sizes[0] == 224


@pytest.mark.parametrize(
    ("pipeline", "needed"),
    [
        (ViewPipeline([PatchGrid(View(90, CenterCrop(1.0)), 20)]), 90),
        (ViewPipeline([SameCrop((View(40, CenterCrop(1.0)), View(80, CenterCrop(1.0))))]), 80),
        (ViewPipeline([View(100, CenterCrop(1.0)), View(20, CenterCrop(0.2))]), 100),
    ],
)
def test_a_reduced_decode_leaves_enough_for_the_largest(pipeline: ViewPipeline, needed: int) -> None:
    for height in (needed, 2 * needed, 4 * needed - 1, 4 * needed, 8 * needed, 20 * needed):
        drawn = pipeline.draw(height, height + 7, seed=0, epoch=0, index=0)
        assert pipeline.reduction(drawn) == max(r for r in (1, 2, 4, 8) if r == 1 or height >= r * needed)


@pytest.mark.parametrize("preset", [relative_loc_views, cae_views, swav_views])
def test_joint_views_of_a_large_jpeg_come_from_a_reduced_decode(preset: Callable[..., ViewPipeline]) -> None:
    image = cv2.resize(photo("flower.jpg"), None, fx=3.0, fy=3.0, interpolation=cv2.INTER_CUBIC)
    pipeline = {
        relative_loc_views: lambda: relative_loc_views(size=96, patch_side=24),
        cae_views: lambda: cae_views(size=64, token_size=32, num_masked=5, min_masked=2, min_scale=0.5),
        swav_views: lambda: swav_views(size=64, small_size=16, num_small=2, min_scale=0.5),
    }[preset]()
    assert pipeline.reduction(pipeline.draw(*image.shape[:2], seed=0, epoch=0, index=0)) > 1
    outs = [{n: np.zeros((1, *c.shape), c.dtype) for n, c in pipeline.columns.items()} for _ in range(2)]
    pipeline.write(encode(image, quality=95), seed=0, epoch=0, index=0, out=outs[0], row=0)
    pipeline.write_image(image, seed=0, epoch=0, index=0, out=outs[1], row=0)
    views = [name for name in pipeline.columns if name not in pipeline.extras]
    assert np.mean([np.abs(outs[0][name].astype(int) - outs[1][name]).mean() for name in views]) < 8
    assert all(np.array_equal(outs[0][name], outs[1][name]) for name in pipeline.extras)
