import dataclasses
import json
import pickle
from typing import Any

import pytest
from torch import nn
from torch.optim import SGD, AdamW

from ssl_ray.errors import UserError
from ssl_ray.recipe import Optimization, Paper, Recipe, Training, override, overrides, parse_settings
from ssl_ray.spec import Spec
from tests.test_spec import Algorithm, Backbone, Head, make_number

RECIPE = Recipe(
    name="test",
    paper=Paper(title="A Title, with comma", arxiv="2001.00001", year=2020, result="none"),
    algorithm=Spec(Algorithm, backbone=Spec(Backbone, depth=18), head=Spec(Head, temperature=0.1)),
    views=Spec(make_number),
    optimization=Optimization(
        optimizer=Spec(AdamW, betas=(0.9, 0.95)), base_lr=0.1, schedule="step", milestones=(3, 6)
    ),
    training=Training(epochs=10, global_batch_size=64),
)


def test_json_round_trip() -> None:
    again = Recipe.from_json(json.loads(json.dumps(RECIPE.to_json())))
    assert again == RECIPE
    assert again.optimization.milestones == (3, 6)
    assert RECIPE.to_json()["format"] == 1
    assert pickle.loads(pickle.dumps(RECIPE)) == RECIPE


def test_json_may_leave_out_what_has_a_default() -> None:
    data = RECIPE.to_json()
    del data["evaluation"], data["data"], data["training"]["seed"]
    data["algorithm"]["backbone"] = {"type": "ResNet", "depth": 18}  # a built-in by its bare name
    with pytest.raises(UserError, match="should be a Spec of Backbone"):
        Recipe.from_json(data)
    data["algorithm"]["backbone"] = {"type": f"{Backbone.__module__}:Backbone", "depth": 18}
    assert Recipe.from_json(data) == RECIPE


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 99, "format 99 is not 1"),
        ("training", {"epochs": 3}, "Training: missing 'global_batch_size'"),
        ("trainig", {}, "Recipe: unknown argument 'trainig'; did you mean 'training'"),
        ("views", {"size": 3}, "Recipe.views = .*: should be a Spec"),
        ("training", 3, "Recipe.training = 3: should be a Spec of Training"),
    ],
)
def test_refuses_other_json(path: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe.from_json({**RECIPE.to_json(), path: value})


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPE.name = "other"  # type: ignore[misc]


def test_overrides_fields_arguments_and_defaults() -> None:
    changed = override(RECIPE, "algorithm.head.temperature", 1)
    changed = override(changed, "algorithm.backbone.stem", "small")
    changed = override(changed, "training.epochs", 3)
    changed = override(changed, "algorithm.head.loss", Spec(nn.CrossEntropyLoss))
    assert changed.algorithm.kwargs["head"] == Spec(Head, temperature=1.0, loss=Spec(nn.CrossEntropyLoss))
    assert changed.algorithm.kwargs["backbone"] == Spec(Backbone, depth=18, stem="small")
    assert changed.training == Training(epochs=3, global_batch_size=64)
    assert RECIPE.training.epochs == 10


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("algorithm.head.temprature", 1, r"algorithm\.head\.temprature: .* did you mean 'temperature'\?"),
        ("trainin.epochs", 1, r"trainin\.epochs: there is no 'trainin'; did you mean 'training'\?"),
        ("training.epochs", 0, r"^training\.epochs = 0: should be greater than 0"),
        ("training.epochs", 1.5, r"^training\.epochs = 1\.5: should be a valid integer"),
        ("training.precision", "fp16", r"^training\.precision = .* should be 'fp32' or 'bf16'"),
        ("optimization.schedule", "linear", "should be 'cosine', 'step' or 'constant'"),
        ("optimization.base_lr", 0, "should be greater than 0"),
        ("optimization.milestones", [6, 3], "should grow"),
        ("optimization.optimizer.lr", 0.1, "set optimization.base_lr"),
        ("data.max_broken", 1.1, "should be less than or equal to 1"),
        ("evaluation.every_epochs", 0, "should be greater than 0"),
    ],
)
def test_override_refuses_in_one_line(path: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        override(RECIPE, path, value)
    assert "\n" not in str(caught.value)


def test_lr_follows_unless_it_is_named() -> None:
    resolved = override(RECIPE, "optimization.lr", 0.025)
    assert override(resolved, "training.epochs", 3).optimization.lr == 0.025
    assert override(resolved, "training.global_batch_size", 128).optimization.lr is None
    assert override(resolved, "optimization.base_lr", 0.2).optimization.lr is None
    both = {"optimization.lr": 0.3, "training.global_batch_size": 128}
    for order in (both, dict(reversed(both.items()))):
        assert overrides(RECIPE, order).optimization.lr == 0.3


def test_overrides_that_only_fit_together() -> None:
    changed = overrides(RECIPE, {"optimization.schedule": "cosine", "optimization.milestones": []})
    assert changed.optimization.milestones == ()
    swapped = override(RECIPE, "optimization.optimizer", Spec(SGD, momentum=0.9))
    assert swapped.optimization.optimizer == Spec(SGD, momentum=0.9)


def test_parses_settings() -> None:
    parsed = parse_settings(["training.epochs=5", "algorithm.backbone=ResNet(depth=18)", "name = a=b"])
    assert parsed.pop("algorithm.backbone").kwargs == {"depth": 18}
    assert parsed == {"training.epochs": 5, "name": "a=b"}
    for text in ("training.epochs", "=5"):
        with pytest.raises(UserError, match="write path=value"):
            parse_settings([text])
