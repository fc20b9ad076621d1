import numpy as np

from ssl_ray.data.pipeline import make_batch
from ssl_ray.data.preview import preview_grid
from ssl_ray.data.views import (
    cae_views,
    mae_views,
    moco_v2_views,
    plain_views,
    relative_loc_views,
    swav_views,
)
from tests.data.photos import encode, patch, photo


def test_shape_and_contents() -> None:
    images = [photo("china.jpg"), photo("flower.jpg")]
    grid = preview_grid(moco_v2_views(size=128), images, seed=0, epochs=2)
    assert grid.dtype == np.uint8
    assert grid.shape == (2 * 132 + 4, 5 * 132 + 4, 3)
    for row, image in enumerate(images):
        for epoch in range(2):
            columns, _ = make_batch(
                moco_v2_views(size=128), [encode(image, "PNG")], [row], seed=0, epoch=epoch
            )
            for view in range(2):
                top, left = 4 + row * 132, 4 + (1 + 2 * epoch + view) * 132
                assert np.array_equal(grid[top : top + 128, left : left + 128], columns[f"view_{view}"][0])
    assert (grid[:4] == 255).all()
    assert (grid[:, -4:] == 255).all()


def test_tiny_images_are_enlarged_by_whole_factors() -> None:
    image = patch(size=28)
    grid = preview_grid(plain_views(size=28, crop_fraction=1.0), [image], seed=0)
    assert grid.shape == (4 + 112 + 4, 4 + 2 * 116, 3)
    enlarged = image.repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(grid[4:116, 4:116], enlarged)
    assert np.array_equal(grid[4:116, 120:232], enlarged)


def test_extra_columns_are_left_out() -> None:
    assert preview_grid(mae_views(size=112), [photo()]).shape == (120, 236, 3)


def test_views_of_two_sizes_are_shown_at_one_scale() -> None:
    image, pipeline = photo(), swav_views(size=56, small_size=28, num_small=3)
    grid = preview_grid(pipeline, [image])
    assert grid.shape == (120, 4 + 6 * 116, 3)
    columns, _ = make_batch(pipeline, [encode(image, "PNG")], [0], seed=0, epoch=0)
    large, small = (columns[name][0].repeat(2, axis=0).repeat(2, axis=1) for name in ("view_1", "view_4"))
    assert np.array_equal(grid[4:116, 4 + 2 * 116 :][:, :112], large)
    cell = grid[4:116, 4 + 5 * 116 :][:, :112]
    assert np.array_equal(cell[28:84, 28:84], small)
    assert (cell[:28] == 255).all()


def test_what_a_mask_hides_is_faded() -> None:
    image, pipeline = photo(), cae_views()
    grid = preview_grid(pipeline, [image])
    columns, _ = make_batch(pipeline, [encode(image, "PNG")], [0], seed=0, epoch=0)
    shown, view = grid[4:228, 4 + 228 : 4 + 228 + 224].astype(int), columns["view_0"][0].astype(int)
    hidden = columns["mask"][0].repeat(16, axis=0).repeat(16, axis=1) == 1
    assert hidden.sum() == 75 * 256
    assert np.array_equal(shown[~hidden], view[~hidden])
    assert np.abs(shown[hidden] - (0.25 * view[hidden] + 96)).max() < 1
    tokens = grid[4 + 56 : 4 + 168, 4 + 2 * 228 + 56 :][:, :112]
    assert np.array_equal(tokens, columns["view_1"][0])


def test_all_nine_patches_are_shown() -> None:
    assert preview_grid(relative_loc_views(), [photo()]).shape == (4 + 132, 4 + 10 * 132, 3)
