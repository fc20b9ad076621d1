"""Every number that a recipe holds, with values nobody should give: each of them works, or is refused by its path.

A value works if the recipe resolves and what it decides can be done: views have finite numbers, a step of the algorithm
has a finite loss and leaves finite weights, memories and teachers, a learning rate is finite at every step.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, get_args, get_origin

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

import ssl_ray.models
from ssl_ray import experiments
from ssl_ray.checks import check, signature
from ssl_ray.data import masking, mixing, view_makers, views
from ssl_ray.data.augment import geometry, rand_augment, transforms
from ssl_ray.errors import UserError, first_line
from ssl_ray.evaluation.knn import knn_accuracy
from ssl_ray.models import BaseModel, Output, ParamGroup, Progress, Samples, Views
from ssl_ray.models.meta import without_memory
from ssl_ray.paths import build_at, value_at, walk
from ssl_ray.recipe import DataOptions, Evaluation, Optimization, Recipe, Training, override, overrides
from ssl_ray.resolve import resolve
from ssl_ray.spec import Spec
from ssl_ray.training.lars import LARS
from ssl_ray.training.optim import build_optimizer
from ssl_ray.training.preflight import preflight
from ssl_ray.training.schedules import learning_rate
from ssl_ray.tuning.plan import check_search
from ssl_ray.tuning.space import Choice, Integer, Space, Uniform
from tests import small

SMALL: Recipe = experiments.load("moco").SMALL
ROWS, IMAGES = 16, 256
WRONG = {int: (0, -1, math.nan, math.inf, 10**9), float: (0.0, -1.0, math.nan, math.inf, 1e9)}


def number(annotation: Any) -> type | None:
    """`int` or `float`, where an argument takes such, also among other things or in lists."""
    if annotation in (int, float):
        return annotation  # type: ignore[no-any-return]
    parts = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return next(filter(None, map(number, parts)), None)


def numbers(recipe: Recipe) -> Iterator[tuple[str, str, type, Any]]:
    """(path, who takes it and as what, kind of number, value) of all that a recipe takes, given or not."""
    for path, value in walk(recipe):
        parent, _, name = path.rpartition(".")
        node = value_at(recipe, parent) if parent else recipe
        if not isinstance(node, list | tuple) and not isinstance(value, Spec):
            target = node.target if isinstance(node, Spec) else type(node)
            if name not in ("params", "lr") or not parent.endswith("optimizer"):
                kind = number(signature(target).annotations.get(name))
                if kind is not None:
                    yield path, f"{target.__name__}.{name}", kind, value


def wrong(kind: type, value: Any) -> Iterator[Any]:
    """What is tried instead of a value; of a list, in each of its places."""
    for new in WRONG[kind]:
        if isinstance(value, list | tuple):
            yield from (
                type(value)(new if i == place else v for i, v in enumerate(value))
                for place in range(len(value))
            )
        else:
            yield new


def refused(error: UserError, path: str) -> bool:
    """Whether a message is one line that says which argument it is about: the whole path, or what it is part of."""
    said, parts = str(error), path.split(".")
    begins = any(said.startswith(".".join(parts[:end])) for end in range(1, len(parts)))
    assert "\n" not in said, said
    assert path in said or (begins and parts[-1] in said), f"{path} is not named: {said}"
    return True


def finite(tensors: Iterator[Tensor] | list[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())


def judge(path: str, value: Any, plain: Recipe) -> bool:
    """True if the value is refused as it should be, False if it works. Fails for everything in between."""
    try:
        recipe = resolve(override(plain, path, value), small.source(IMAGES).info).recipe
        pipeline = build_at(recipe.views, "views")
    except UserError as error:
        return refused(error, path)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    section = path.partition(".")[0]
    if section == "evaluation":
        features = torch.eye(IMAGES, 8) + 1e-3
        labels = torch.arange(IMAGES) % 2
        k, temperature = recipe.evaluation.k, recipe.evaluation.temperature
        assert 0 <= knn_accuracy(features, labels, features, labels, k, temperature) <= 1
    elif section == "optimization":
        _a_tiny_step(recipe)
    elif section in ("views", "algorithm"):
        shapes = {n: c for n, c in pipeline.columns.items() if not n.startswith("view_")}
        before = build_at(plain.views, "views")
        same = section == "views" and not shapes and pipeline.columns == before.columns
        try:
            batch = small.batch(recipe, ROWS)
            if not same:
                _a_step(recipe, batch)
        except Exception as fault:
            try:
                preflight(recipe)
            except UserError as error:
                return refused(error, path)
            raise AssertionError(f"neither works nor is refused: {first_line(fault)}") from fault
    return False


def _a_tiny_step(recipe: Recipe) -> None:
    """A learning rate and a step of the optimiser, on one weight."""
    epochs = recipe.training.epochs
    for epoch in range(epochs):
        assert (
            0 <= learning_rate(recipe.optimization, Progress(10 * epoch, 10 * epochs, epoch, epochs)) < 1e12
        )
    weight = nn.Parameter(torch.ones(1))
    assert recipe.optimization.lr is not None
    optimizer = build_optimizer(
        recipe.optimization.optimizer, [ParamGroup([weight])], lr=recipe.optimization.lr
    )
    weight.grad = torch.ones(1)
    optimizer.step()
    assert finite([weight.detach()])


def _a_step(recipe: Recipe, batch: tuple[list[Tensor], dict[str, Tensor]]) -> None:
    """All that a run does to an algorithm in its first step; nothing that is larger than this machine is made."""
    with without_memory():
        assert sum(t.nbytes for t in recipe.algorithm.build().state_dict().values()) < 2**29
    torch.manual_seed(0)
    algorithm: BaseModel = recipe.algorithm.build()
    progress = Progress(0, 10, 0, 10)
    algorithm.before_epoch(progress, small.extract(recipe, algorithm, IMAGES))
    optimizer = build_optimizer(recipe.optimization.optimizer, algorithm.param_groups(), lr=1e-3)
    output = algorithm(*batch, mode="loss")
    output.loss.backward()
    assert finite([output.loss.detach(), *output.metrics.values()])
    gradients = [p.grad for p in algorithm.parameters() if p.grad is not None]
    assert finite(gradients)
    assert any(bool(g.any()) for g in gradients), "nothing is learned"
    algorithm.before_step(progress)
    optimizer.step()
    algorithm.after_step(output.state, progress)
    assert finite(list(algorithm.state_dict().values()))


# A smaller vocabulary is learned sooner.
SMALLER = {"cae": {"algorithm.tokenizer.num_tokens": 32}}
JUDGED: dict[tuple[str, str], bool] = {}


@pytest.mark.parametrize("name", small.NAMES)
def test_a_number_works_or_is_refused_by_its_path(name: str) -> None:
    recipe = small.recipe(name, ROWS, SMALLER.get(name), images=IMAGES)
    faults, counts = [], {True: 0, False: 0}
    for path, owner, kind, value in numbers(recipe):
        for new in wrong(kind, value):
            # The same argument of the same class is the same in another recipe, but for parts of an algorithm.
            key = (owner if not path.startswith("algorithm") else f"{name} {path}", repr(new))
            if key not in JUDGED:
                try:
                    JUDGED[key] = judge(path, new, recipe)
                except AssertionError as error:
                    faults.append(f"{path} = {new}: {str(error).splitlines()[0]}")
                    continue
            counts[JUDGED[key]] += 1
    assert not faults, "\n".join(faults)
    assert counts[True] > counts[False] > 0


VARIANTS = sorted(
    {(name, variant) for name in experiments.names() for variant in experiments.recipes_of(name)}
)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_a_published_recipe_takes_no_number_that_was_not_judged(name: str, variant: str) -> None:
    """What is accepted there is what the small recipes show to work."""
    recipe: Recipe = experiments.recipes_of(name)[variant]
    for path, owner, kind, value in numbers(recipe):
        for new in wrong(kind, value):
            try:
                override(recipe, path, new)
            except UserError as error:
                refused(error, path)
                continue
            if owner in judged():
                continue
            where = path.rpartition(".")[0]
            assert where in ("views", "optimization.optimizer"), f"{path} = {new}"
            judge(path, new, small.recipe(name, ROWS, {where: value_at(recipe, where)}))


@functools.cache
def judged() -> frozenset[str]:
    return frozenset(owner for name in small.NAMES for _, owner, _, _ in numbers(small.recipe(name, ROWS)))


# Any number will do: a constant that a loss adds, and the colour that is taken off an image.
FREE = {("CosineSimilarityLoss", "shift_factor"), ("DataPreprocessor", "mean")}
AUGMENT = (transforms, geometry, rand_augment, masking, mixing, view_makers)
PARTS = [
    *(getattr(ssl_ray.models, name) for name in ssl_ray.models.__all__),
    *(function for name, function in vars(views).items() if name.endswith("_views")),
    *(
        p
        for m in AUGMENT
        for p in vars(m).values()
        if dataclasses.is_dataclass(p) and p.__module__ == m.__name__
    ),
    *(LARS, Optimization, Training, Evaluation, DataOptions),
]


@pytest.mark.parametrize(
    "part", [p for p in PARTS if p not in (Output, ParamGroup, Progress, Samples, Views)]
)
def test_every_number_of_what_recipes_are_made_of_has_a_range(part: Callable[..., Any]) -> None:
    for name, annotation in signature(part).annotations.items():
        kind = number(annotation)
        if kind is None or name == "return" or (part.__name__, name) in FREE:
            continue
        value = kind(-(10**9))
        many = any(kind in (list, tuple, Sequence) for kind in (get_origin(annotation), *parts(annotation)))
        with pytest.raises(UserError, match=f"^{part.__name__}.{name} = .*: should be greater than"):
            check(part, name, [value, value] if many else value)


def parts(annotation: Any) -> list[Any]:
    """What kinds of value an annotation is about."""
    return [get_origin(a) for a in get_args(annotation)]


@pytest.mark.parametrize(
    ("optimizer", "name", "value", "said"),
    [
        (SGD, "momentum", 1.5, "should be less than 1"),
        (SGD, "momentum", -0.1, "should be greater than or equal to 0"),
        (SGD, "weight_decay", -1e-4, "should be greater than or equal to 0"),
        (SGD, "dampening", 2, "should be less than 1"),
        (AdamW, "betas", (0.9, 1.0), "should be less than 1"),
        (AdamW, "betas", (0.9,), "Field required"),
        (AdamW, "eps", 0, "should be greater than 0"),
        (LARS, "trust_coefficient", 0, "should be greater than 0"),
    ],
)
def test_optimisers_of_others_have_ranges_too(optimizer: type, name: str, value: Any, said: str) -> None:
    recipe = override(SMALL, "optimization.optimizer", Spec(optimizer))
    with pytest.raises(UserError) as caught:
        override(recipe, f"optimization.optimizer.{name}", value)
    assert str(caught.value).startswith(f"optimization.optimizer.{name} = ")
    assert said in str(caught.value)


def test_a_file_is_told_where_its_number_stands() -> None:
    data = SMALL.to_json()
    data["algorithm"]["head"]["temperature"] = 0
    with pytest.raises(UserError, match=r"^algorithm\.head\.temperature = 0: should be greater than 0$"):
        Recipe.from_json(data)
    data = SMALL.to_json()
    data["training"]["epochs"] = 0
    with pytest.raises(UserError, match=r"^training\.epochs = 0: should be greater than 0$"):
        Recipe.from_json(data)


@pytest.mark.parametrize(
    ("path", "space"),
    [
        ("algorithm.head.temperature", Uniform(-0.1, 0.5)),
        ("algorithm.momentum", Choice((0.9, 1.5))),
        ("algorithm.queue_size", Integer(0, 512)),
        ("optimization.optimizer.betas", Choice(((0.9, 0.95), (0.9, 1.0)))),
        ("views.flip_p", Uniform(0.0, 1.5)),
    ],
)
def test_a_search_stays_in_the_ranges(path: str, space: Space) -> None:
    with pytest.raises(UserError, match=rf"^{path} = .*: should be "):
        check_search(SMALL, {path: space})


class Wide(nn.Module):
    """Somebody's neck, which says nothing of ranges; `limit` is its own affair."""

    def __init__(self, in_channels: int, out_channels: int, limit: int = 0) -> None:
        super().__init__()
        if limit < 0:
            raise ValueError("never less than nothing")
        self.out_channels = out_channels
        self.fc = nn.Linear(in_channels, out_channels)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        return self.fc(maps[-1].mean((2, 3)))  # type: ignore[no-any-return]


def test_what_somebody_elses_module_refuses_is_told_with_its_path() -> None:
    neck = Spec(Wide, in_channels=128, out_channels=64, limit=-1)
    with pytest.raises(UserError, match=r"^algorithm\.neck: never less than nothing; `ssl-ray show`"):
        preflight(override(small.recipe("moco", ROWS), "algorithm.neck", neck))


def test_what_no_machine_can_hold_is_refused_and_never_made() -> None:
    neck = Spec(Wide, in_channels=128, out_channels=4 * 10**9)
    began = psutil.Process().memory_info().rss
    with pytest.raises(UserError, match=r"^algorithm: .* GiB of weights .* is algorithm\..*4000000000"):
        preflight(override(small.recipe("simclr", ROWS), "algorithm.neck", neck))
    with pytest.raises(UserError, match=r"^views: .* GiB for one image; lower the size"):
        preflight(overrides(small.recipe("simclr", ROWS), {"views.size": 8192, "views.num_views": 8}))
    assert psutil.Process().memory_info().rss - began < 2**30


def test_the_last_map_that_is_asked_for_is_the_one_that_is_used() -> None:
    recipe = small.recipe("simclr", ROWS, {"algorithm.backbone.out_indices": (2,)})
    assert value_at(recipe, "algorithm.neck.in_channels") == 32
    algorithm = recipe.algorithm.build()
    algorithm(*small.batch(recipe, ROWS), mode="loss").loss.backward()
    unused = {name.split(".")[1] for name, p in algorithm.named_parameters() if p.grad is None}
    assert unused == {"layer3", "layer4"}
    trained = {id(p) for group in algorithm.param_groups() for p in group.params}
    assert all((p.grad is not None) == (id(p) in trained) for p in algorithm.parameters())
