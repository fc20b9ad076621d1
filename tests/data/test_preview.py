import numpy as np

from ssl_ray.data.preview import preview_grid
from ssl_ray.data.views import mae_views, make_batch, moco_v2_views, plain_views
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
