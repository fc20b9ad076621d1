"""What follows from a setting: the rest of the recipe fits it, or one line says what does not."""

from typing import Any

import pytest
from torch import nn

from ssl_ray import experiments
from ssl_ray.errors import UserError
from ssl_ray.models import BaseModel
from ssl_ray.paths import value_at
from ssl_ray.recipe import Recipe, override, overrides
from ssl_ray.resolve import Resolved, resolve
from ssl_ray.spec import Spec
from ssl_ray.training.preflight import preflight
from tests.test_resolve import INFO, LARGE


def small(name: str, settings: dict[str, Any]) -> Resolved:
    recipe: Recipe = experiments.load(name).SMALL
    return resolve(overrides(recipe, settings), INFO)


@pytest.mark.parametrize(
    ("name", "setting", "followed"),
    [
        ("barlow_twins", {"algorithm.neck.out_channels": 96}, {"algorithm.head.in_channels": 96}),
        ("swav", {"algorithm.neck.out_channels": 96}, {"algorithm.head.in_channels": 96}),
        ("relative_loc", {"algorithm.neck.out_channels": 96}, {"algorithm.head.in_channels": 96}),
        ("npid", {"algorithm.neck.out_channels": 96}, {"algorithm.memory.dim": 96}),
        (
            "odc",
            {"algorithm.neck.out_channels": 96},
            {"algorithm.memory.dim": 96, "algorithm.head.in_channels": 96},
        ),
        *(
            (
                name,
                {"algorithm.neck.out_channels": 96},
                {"algorithm.head.predictor.in_channels": 96, "algorithm.head.predictor.out_channels": 96},
            )
            for name in ("byol", "simsiam", "moco_v3")
        ),
        # A neck that only pools, and none.
        ("deepcluster", {"algorithm.backbone.width": 24}, {"algorithm.head.in_channels": 192}),
        ("rotation_pred", {"algorithm.backbone.width": 24}, {"algorithm.head.in_channels": 192}),
        (
            "deepcluster",
            {"algorithm.neck": Spec(nn.Identity)},
            {"algorithm.head.in_channels": 128},
        ),
        ("swav", {"views.size": 20}, {"views.small_size": 16}),
        ("swav", {"views.size": 14}, {"views.small_size": 6}),
        ("relative_loc", {"views.size": 27}, {"views.patch_side": 7}),
        ("relative_loc", {"views.size": 33, "views.gap": 2}, {"views.patch_side": 7}),
        ("simmim", {"views.size": 28}, {"views.mask_patch_size": 4, "algorithm.neck.encoder_stride": 4}),
        (
            "simmim",
            {"views.size": 28, "algorithm.backbone.patch_size": 7},
            {"views.mask_patch_size": 7, "algorithm.neck.encoder_stride": 14},
        ),
        (
            "simmim",
            {
                "algorithm.backbone.depths": (2, 2, 2),
                "algorithm.backbone.num_heads": (2, 4, 8),
                "views.size": 32,
            },
            {"algorithm.neck.encoder_stride": 8},
        ),
        ("cae", {"views.size": 32}, {"views.token_size": 32, "views.num_masked": 25}),
        ("cae", {"algorithm.tokenizer.cell_size": 8}, {"views.token_size": 56}),
        (
            "cae",
            {"algorithm.backbone.patch_size": 7},
            {"views.token_size": 16, "views.num_masked": 8, "algorithm.num_masked": 8, "views.min_masked": 4},
        ),
        ("cae", {"views.num_masked": 3}, {"algorithm.num_masked": 3, "views.min_masked": 3}),
    ],
)
def test_the_rest_follows(name: str, setting: dict[str, Any], followed: dict[str, Any]) -> None:
    before: Recipe = experiments.load(name).SMALL
    resolved = small(name, setting)
    assert {path: value_at(resolved.recipe, path) for path in followed} == followed
    for path, value in followed.items():
        assert (path in resolved.origins) == (value != value_at(before, path)), path
    again = resolve(resolved.recipe, INFO)
    assert again.recipe == resolved.recipe
    assert again.origins.keys() <= {"views.size"}  # that images are enlarged stays true


def test_tokens_of_a_fixed_size_need_no_weights() -> None:
    recipe: Recipe = experiments.load("cae").PAPER_DALLE
    assert resolve(recipe, LARGE).recipe.views.kwargs["token_size"] == 112
    assert resolve(override(recipe, "views.size", 256), LARGE).recipe.views.kwargs["token_size"] == 128
    few = resolve(override(recipe, "views.size", 96), LARGE)
    assert few.recipe.views.kwargs["num_masked"] == 14
    assert few.origins["views.num_masked"] == "as many of 36 patches as 75 of 196"


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("simmim", {"views.size": 30}, r"^views\.size 30 is no multiple of 4 pixels, .*; choose 28 "),
        (
            "simmim",
            {"views.size": 28, "algorithm.backbone.patch_size": 4},
            r"^views\.size 28 is no multiple of 8 pixels",
        ),
        ("relative_loc", {"views.gap": 14}, r"^views\.gap 14 leaves no room .* views\.size 42"),
        ("cae", {"views.num_masked": 49}, r"^views\.num_masked 49 would hide all of the 49 patches"),
        (
            "mae",
            {"algorithm.backbone.patch_size": 0},
            r"^algorithm\.backbone\.patch_size = 0: should be greater than 0",
        ),
        ("mae", {"algorithm.backbone.num_heads": 5}, r"^algorithm\.backbone\.num_heads: 5 does not divide"),
    ],
)
def test_what_cannot_follow_is_refused(name: str, setting: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        small(name, setting)


class Widen(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, 2 * in_channels)


class Mine(BaseModel):
    """A user's own: known by nothing but the names of its arguments."""

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: nn.Module, predictor: nn.Module) -> None:
        super().__init__(backbone, neck, head)


def test_a_users_own_algorithm_is_served_alike() -> None:
    parts = experiments.load("byol").SMALL.algorithm.kwargs
    predictor, head = (
        parts["head"].kwargs["predictor"],
        experiments.load("swav").SMALL.algorithm.kwargs["head"],
    )
    recipe = override(
        experiments.load("byol").SMALL,
        "algorithm",
        Spec(Mine, backbone=parts["backbone"], neck=parts["neck"], head=head, predictor=predictor),
    )
    fitted = resolve(override(recipe, "algorithm.neck.out_channels", 96), INFO).recipe
    for path in ("head.in_channels", "predictor.in_channels", "predictor.out_channels"):
        assert value_at(fitted, f"algorithm.{path}") == 96
    # How wide the output of this neck is nobody says: what is written stands.
    untold = resolve(override(recipe, "algorithm.neck", Spec(Widen, in_channels=1)), INFO).recipe
    assert value_at(untold, "algorithm.neck.in_channels") == 128
    assert value_at(untold, "algorithm.head.in_channels") == 64


class Curious(nn.Module):
    """Asks for the values of its weights, which it has not when it is built without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.scale = float(self.fc.weight.abs().max())


def test_a_backbone_that_cannot_be_built_without_memory_is_left_alone() -> None:
    recipe = override(experiments.load("simclr").SMALL, "algorithm.backbone", Spec(Curious))
    assert value_at(resolve(recipe, INFO).recipe, "algorithm.neck.in_channels") == 128


SETTINGS: tuple[dict[str, Any], ...] = (
    {"views.size": 32},
    {"views.size": 16, "algorithm.backbone.width": 24, "algorithm.backbone.embed_dim": 48},
    {"views.size": 28, "algorithm.neck.out_channels": 96, "algorithm.backbone.patch_size": 7},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: ",".join(s))
@pytest.mark.parametrize("name", experiments.names())
def test_every_algorithm_follows(name: str, settings: dict[str, Any]) -> None:
    recipe: Recipe = experiments.load(name).SMALL
    known = {path: value for path, value in settings.items() if value_at(recipe, path) is not None}
    if name == "simmim":
        known.pop("algorithm.neck.out_channels", None)  # the channels of an image
    preflight(small(name, known).recipe)
