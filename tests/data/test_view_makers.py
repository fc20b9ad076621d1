import cv2
import numpy as np
import pytest

from ssl_ray.data.augment.geometry import CenterCrop, RandomResizedCrop, resized_crop
from ssl_ray.data.augment.transforms import Grayscale, HorizontalFlip
from ssl_ray.data.pipeline import ViewPipeline, make_batch
from ssl_ray.data.random import Draws
from ssl_ray.data.view_makers import PATCH_CELLS, PatchGrid, SameCrop, View
from ssl_ray.data.views import cae_views
from ssl_ray.errors import UserError
from tests.data.photos import encode, photo


def test_views_of_one_crop_show_the_same_region() -> None:
    cut, flip = RandomResizedCrop(), (HorizontalFlip(),)
    crop = SameCrop((View(64, cut, flip), View(32, cut, flip)))
    columns, _ = make_batch(
        ViewPipeline([crop]), [encode(photo()[:375, :500])] * 40, range(40), seed=0, epoch=0
    )
    large, small = columns["view_0"], columns["view_1"]
    halved = np.stack([cv2.resize(v, (32, 32), interpolation=cv2.INTER_AREA) for v in large]).astype(int)
    same = np.abs(halved - small).mean((1, 2, 3))
    mirrored = np.abs(halved[:, :, ::-1] - small).mean((1, 2, 3))
    assert same.max() < 8
    assert (mirrored > 2 * same).all()
    # Drawn apart, the two would show different parts.
    apart, _ = make_batch(
        ViewPipeline(crop.views), [encode(photo()[:375, :500])] * 40, range(40), seed=0, epoch=0
    )
    assert np.abs(halved - apart["view_1"]).mean((1, 2, 3)).mean() > 5 * same.mean()


def test_cae_shows_one_crop_twice() -> None:
    pipeline = cae_views()
    assert pipeline.sizes == (224, 112)
    image = photo("flower.jpg")
    out = {n: np.zeros((1, *c.shape), c.dtype) for n, c in pipeline.columns.items()}
    for index in range(10):
        (drawn,) = pipeline.draw(*image.shape[:2], seed=0, epoch=0, index=index)
        pipeline.write_image(image, seed=0, epoch=0, index=index, out=out, row=0)
        for name, size, interpolation in (("view_0", 224, "bicubic"), ("view_1", 112, "lanczos")):
            expected = resized_crop(image, drawn.box, size, interpolation)  # type: ignore[arg-type]
            flipped = drawn.params[0] is not None
            assert np.array_equal(out[name][0], expected[:, ::-1] if flipped else expected)


def painted(side: int) -> np.ndarray:
    """An image of 3 x 3 cells; cell (row, column) has red 10 + 100 * row and green 20 + 100 * column."""
    image = np.zeros((side, side, 3), np.uint8)
    thirds = np.arange(side) * 3 // side
    image[..., 0] = 10 + 100 * thirds[:, None]
    image[..., 1] = 20 + 100 * thirds[None, :]
    return image


def test_a_patch_lies_in_its_cell() -> None:
    pipeline = ViewPipeline([PatchGrid(View(255, CenterCrop(1.0)), 64)])
    names = [f"view_{i}" for i in range(9)]
    columns, _ = make_batch(pipeline, [encode(painted(255), "PNG")] * 20, range(20), seed=0, epoch=0)
    # The centre, then the neighbours down the first column, the second, the third.
    cells = [(1, 1), (0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2), (2, 2)]
    for name, (row, column) in zip(names, cells, strict=True):
        assert (columns[name] == [10 + 100 * row, 20 + 100 * column, 0]).all()
    assert tuple(cells) == PATCH_CELLS


@pytest.mark.parametrize("gap", [0, 5, 21])
def test_patches_wander_within_their_cells_and_keep_the_gap(gap: int) -> None:
    grid = PatchGrid(View(255, CenterCrop(1.0)), 64, gap)
    corners = np.array(
        [[p[:2] for p in grid.draw(Draws(0, 0, i), 255, 255).params[1]] for i in range(2000)]
    )  # (2000, 9, 2)
    offsets = corners - 85 * np.array(PATCH_CELLS)
    assert (offsets.min(0) == gap // 2).all()
    assert (offsets.max(0) == gap // 2 + 21 - gap).all()
    places = {cell: corners[:, i] for i, cell in enumerate(PATCH_CELLS)}
    for row, column in PATCH_CELLS:
        for axis, neighbour in enumerate([(row + 1, column), (row, column + 1)]):
            if neighbour in places:
                between = places[neighbour][:, axis] - places[row, column][:, axis] - 64
                assert between.min() >= gap
    if gap < 21:  # each patch moves by itself
        assert len({tuple(o) for o in offsets[0].tolist()}) > 4


def test_patches_come_from_one_crop() -> None:
    """Put back where they were drawn, they are parts of the canvas; each has its own transforms."""
    image = photo("china.jpg")
    view = View(120, RandomResizedCrop((0.3, 1.0)), (Grayscale(0.5),))
    plain, gray = PatchGrid(view, 30), PatchGrid(view, 30, transforms=(Grayscale(0.5),))
    some_gray = []
    for i in range(20):
        drawn = plain.draw(Draws(0, 0, i), *image.shape[:2])
        canvas, patches = np.zeros((120, 120, 3), np.uint8), np.zeros((9, 30, 30, 3), np.uint8)
        view.apply(image, view.draw(Draws(0, 0, i), *image.shape[:2]), [canvas])
        plain.apply(image, drawn, list(patches))
        for (top, left, _), out in zip(drawn.params[1], patches, strict=True):
            assert np.array_equal(out, canvas[top : top + 30, left : left + 30])
        gray.apply(image, gray.draw(Draws(0, 0, i), *image.shape[:2]), list(patches))
        some_gray.append(sum((out == out[..., :1]).all() for out in patches))
    assert any(0 < count < 9 for count in some_gray)


@pytest.mark.parametrize(
    "make",
    [
        lambda: View(0, CenterCrop()),
        lambda: PatchGrid(View(30, CenterCrop()), 0),
        lambda: PatchGrid(View(30, CenterCrop()), 11),
        lambda: PatchGrid(View(30, CenterCrop()), 8, gap=3),
        lambda: PatchGrid(View(30, CenterCrop()), 8, gap=-1),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(make: type) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
