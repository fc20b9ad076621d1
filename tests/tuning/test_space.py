"""Spaces as typed and as kept."""

import pytest

from ssl_ray.errors import UserError
from ssl_ray.models.backbones.resnet import ResNet
from ssl_ray.spec import Spec
from ssl_ray.tuning.space import (
    Choice,
    Integer,
    LogUniform,
    Quantized,
    Uniform,
    ends,
    format_space,
    from_json,
    parse_searches,
    parse_space,
    to_json,
)

TYPED = {
    "loguniform(1e-4, 1e-1)": LogUniform(1e-4, 1e-1),
    "uniform(-1, 1.5)": Uniform(-1, 1.5),
    "quniform(0, 1, 0.25)": Quantized(0, 1, 0.25),
    "randint(1, 3)": Integer(1, 3),
    "choice(0.9, null, 'a b', cosine)": Choice((0.9, None, "a b", "cosine")),
}


@pytest.mark.parametrize("text", TYPED)
def test_what_is_typed_is_what_is_meant(text: str) -> None:
    assert parse_space(text) == TYPED[text]
    assert parse_space(format_space(TYPED[text])) == TYPED[text]


def test_a_choice_may_hold_parts_of_a_recipe_and_is_kept_whole() -> None:
    search = parse_searches(
        ["algorithm.backbone=choice(ResNet(depth=18), ResNet(depth=50))", "a=uniform(0,1)"]
    )
    assert search["algorithm.backbone"] == Choice((Spec(ResNet, depth=18), Spec(ResNet, depth=50)))
    assert from_json(to_json(search)) == search
    assert ends(search["algorithm.backbone"]) == search["algorithm.backbone"].values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "write path=space"),
        ("x=3", "is no space"),
        ("x=logunifrom(1, 2)", "did you mean 'loguniform'"),
        ("x=uniform(1)", "should have 2 numbers"),
        ("x=uniform(a, b)", "should have 2 numbers"),
        ("x=loguniform(0, 1)", "greater than 0"),
        ("x=uniform(2, 1)", "low should be less than high"),
        ("x=randint(1, 2.5)", "whole numbers"),
        ("x=quniform(0, 1, 2)", "step"),
        ("x=choice()", "at least one value"),
    ],
)
def test_a_mistyped_space_is_said(text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_searches([text])
    assert said in str(error.value)
