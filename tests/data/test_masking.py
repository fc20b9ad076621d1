import cv2
import numpy as np
import pytest

from ssl_ray.data.masking import BlockMask, RandomCellMask, UniformNoise
from ssl_ray.data.pipeline import Column, Extra
from ssl_ray.data.random import Draws
from ssl_ray.data.views import cae_views, mae_views, simmim_views
from ssl_ray.errors import UserError

MASKS: list[Extra] = [
    UniformNoise(49),
    RandomCellMask(cells=6, patches=8, mask_ratio=0.6),
    BlockMask(side=14, num_masked=75),
]


def masks(mask: Extra, count: int = 300) -> np.ndarray:
    return np.stack([mask.draw(Draws(3, 1, i)) for i in range(count)])


@pytest.mark.parametrize("mask", MASKS)
def test_a_value_is_that_of_its_key(mask: Extra) -> None:
    again = mask.draw(Draws(1, 2, 3))
    assert np.array_equal(mask.draw(Draws(1, 2, 3)), again)
    assert again.shape == mask.column.shape
    assert again.dtype == mask.column.dtype
    for other in (Draws(0, 2, 3), Draws(1, 0, 3), Draws(1, 2, 0), Draws(1, 2, 3, 1)):
        assert not np.array_equal(mask.draw(other), again)


def test_noise_is_uniform() -> None:
    noise = masks(UniformNoise(64), 100)
    assert len(np.unique(noise)) > 6390  # float32 numbers may repeat, samples and epochs do not
    assert noise.min() >= 0
    assert noise.max() < 1
    assert noise.mean() == pytest.approx(0.5, abs=0.015)
    assert mae_views(size=32, patch_size=4).columns["mask_noise"] == Column((64,), "float32")


@pytest.mark.parametrize(
    ("cells", "ratio", "hidden"),
    [(6, 0.6, 22), (6, 0.5, 18), (7, 0.6, 30), (10, 0.55, 55), (10, 0.07, 7), (2, 0.1, 1), (12, 0.3, 44)],
)
def test_random_cells_are_exactly_so_many(cells: int, ratio: float, hidden: int) -> None:
    drawn = masks(RandomCellMask(cells, 4, ratio), 100)
    assert (drawn.sum((1, 2)) == 16 * hidden).all()


def test_random_cells_are_whole_and_anywhere() -> None:
    drawn = masks(RandomCellMask(cells=6, patches=8, mask_ratio=0.6), 2000)
    cells = drawn.reshape(2000, 6, 8, 6, 8)
    assert (cells == cells[:, :, :1, :, :1]).all()
    share = cells[:, :, 0, :, 0].mean(0)  # each cell is hidden in 22 of 36 samples
    assert share == pytest.approx(22 / 36, abs=4.5 * (22 / 36 * 14 / 36 / 2000) ** 0.5)
    # Without replacement two cells are hidden together in 22 * 21 of 36 * 35 samples.
    assert (cells[:, 0, 0, 0, 0] * cells[:, 4, 0, 2, 0]).mean() == pytest.approx(22 * 21 / 36 / 35, abs=0.05)


@pytest.mark.parametrize(
    ("side", "num_masked", "min_masked"),
    [(14, 75, 16), (14, 98, 16), (7, 19, 4), (7, 19, 16), (7, 48, 1), (14, 195, 16), (2, 1, 1), (2, 3, 3)],
)
def test_blocks_hide_exactly_so_many(side: int, num_masked: int, min_masked: int) -> None:
    drawn = masks(BlockMask(side, num_masked, min_masked), 100)
    assert set(np.unique(drawn)) == {0, 1}
    assert (drawn.sum((1, 2)) == num_masked).all()


def test_blocks_are_blocks() -> None:
    drawn = masks(BlockMask(side=14, num_masked=75, min_masked=16))
    areas = [cv2.connectedComponentsWithStats(m, connectivity=4)[2][1:, cv2.CC_STAT_AREA] for m in drawn]
    assert np.mean([len(a) for a in areas]) < 4  # 75 patches hidden one by one form about 26
    # The first block has at least 16 patches, less what rounding its sides to whole patches takes away.
    assert min(a.max() for a in areas) >= 12
    share = drawn.mean(0)
    assert share.min() > 0  # corners are hidden least, the centre most
    assert share[5:9, 5:9].mean() > 2 * share[[0, 0, -1, -1], [0, -1, 0, -1]].mean()


def test_a_first_block_has_an_admissible_shape() -> None:
    # With num_masked equal to min_masked the first block is often all there is.
    heights_widths = []
    for mask in masks(BlockMask(side=14, num_masked=16, min_masked=16)):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        if height * width == 16:
            heights_widths.append((int(height), int(width)))
    assert set(heights_widths) == {(2, 8), (4, 4), (8, 2)}


def test_presets_have_the_published_masks() -> None:
    assert simmim_views().extras == {"mask": RandomCellMask(6, 8, 0.6)}
    assert simmim_views().columns["mask"] == Column((48, 48), "uint8")
    assert RandomCellMask(6, 8, 0.6).num_masked == 22
    assert cae_views().extras == {"mask": BlockMask(14, 75, 16, 0.3)}
    assert cae_views().columns["mask"] == Column((14, 14), "uint8")


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomCellMask(0, 4, 0.5),
        lambda: RandomCellMask(4, 0, 0.5),
        lambda: RandomCellMask(4, 4, 0.0),
        lambda: RandomCellMask(4, 4, 1.0),
        lambda: BlockMask(14, 0),
        lambda: BlockMask(14, 196),
        lambda: BlockMask(14, 75, 0),
        lambda: BlockMask(14, 75, 76),
        lambda: BlockMask(14, 75, 16, 0.0),
        lambda: BlockMask(14, 75, 16, 1.5),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: type) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
