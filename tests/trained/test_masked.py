"""What is shown of masked methods is what they predict."""

import dataclasses

import numpy as np
import pytest
import torch

from ssl_ray.data.pipeline import make_batch
from ssl_ray.data.source import open_dataset
from ssl_ray.experiments import load_recipe
from ssl_ray.models.base import BaseModel
from ssl_ray.recipe import Recipe, overrides
from ssl_ray.resolve import resolve
from ssl_ray.trained.report.masked import Masked, masked

DIGITS = open_dataset("digits").train
INDICES = np.array([3, 8])


def small(name: str, **settings: object) -> tuple[Recipe, BaseModel]:
    recipe = load_recipe(name, scale="small", info=DIGITS.info).recipe
    plenty = dataclasses.replace(DIGITS.info, num_samples=100_000)
    recipe = resolve(overrides(recipe, settings), plenty).recipe
    torch.manual_seed(0)
    return recipe, recipe.algorithm.build()


def shown(recipe: Recipe, algorithm: BaseModel) -> tuple[Masked, dict[str, np.ndarray]]:
    pipeline = recipe.views.build()
    made = masked(algorithm, pipeline, DIGITS, INDICES, seed=5)
    assert made is not None
    columns, _ = make_batch(pipeline, DIGITS.read(INDICES), INDICES, 5, epoch=0)
    return made, columns


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_hidden_pixels_are_gray_and_then_filled_in(name: str) -> None:
    recipe, algorithm = small(name)
    made, columns = shown(recipe, algorithm)
    samples = {k: torch.from_numpy(v) for k, v in columns.items() if k.startswith("mask")}
    view = torch.from_numpy(columns["view_0"]).permute(0, 3, 1, 2)
    algorithm.eval()
    prediction = algorithm([view], samples, mode="predict")
    hidden = prediction.mask.numpy().astype(bool)
    # Undone as the definition of normalising says, not with the buffers that the page uses.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    drawn = (255 * (prediction.pred * std + mean)).clamp(0, 255).numpy()
    assert hidden.any()
    assert not hidden.all()
    for row, image in enumerate(columns["view_0"]):
        original, seen, filled, everything = made.rows[row]
        assert np.array_equal(original, image)
        assert (seen[hidden[row]] == 128).all()
        assert np.array_equal(seen[~hidden[row]], image[~hidden[row]])
        assert np.array_equal(filled[~hidden[row]], image[~hidden[row]])
        assert np.abs(everything - drawn[row]).max() <= 1
        assert np.array_equal(filled[hidden[row]], everything[hidden[row]])
    assert f"{100 * hidden.mean():.0f} %" in made.note


def test_tokens_are_drawn_as_their_patches() -> None:
    recipe, algorithm = small("cae")
    tokenizer = algorithm.tokenizer
    tokenizer.codebook.uniform_()
    tokenizer.fitted.fill_(1)
    made, columns = shown(recipe, algorithm)
    hidden = columns["mask"].astype(bool)
    side = columns["view_0"].shape[1] // hidden.shape[1]
    cell = tokenizer.cell_size
    codebook = tokenizer.codebook.view(-1, 3, cell, cell).permute(0, 2, 3, 1).numpy()
    for row, image in enumerate(columns["view_0"]):
        _, seen, true, predicted = made.rows[row]
        pixels = hidden[row].repeat(side, 0).repeat(side, 1)
        assert (seen[pixels] == 128).all()
        assert np.array_equal(predicted[~pixels], image[~pixels])
        for r, c in np.argwhere(hidden[row]):
            for picture in (true, predicted):
                patch = picture[r * side : (r + 1) * side, c * side : (c + 1) * side]
                small_patch = patch[:: side // cell, :: side // cell] if side >= cell else patch
                near = np.abs(255 * codebook - small_patch[:cell, :cell]).reshape(len(codebook), -1).max(1)
                assert near.min() <= 1, "one of the codebook's patches"


def test_other_methods_have_nothing_to_show() -> None:
    recipe, algorithm = small("simclr")
    assert masked(algorithm, recipe.views.build(), DIGITS, INDICES, seed=0) is None
