import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_ray import experiments
from ssl_ray.errors import UserError
from ssl_ray.models.meta import without_memory
from ssl_ray.paths import replace_at, walk
from ssl_ray.recipe import Recipe, override
from ssl_ray.resolve import resolve
from ssl_ray.tuning.space import Choice, LogUniform, Uniform
from tests.test_resolve import INFO, LARGE

OWN = """
from torch import nn
from ssl_ray.experiments import load
from ssl_ray.recipe import override
from ssl_ray.spec import Spec

class OwnLoss(nn.Module):
    pass

TINY = override(load("moco").SMALL, "algorithm.head.loss", Spec(OwnLoss))
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    path, known = tmp_path / "own_recipes.py", list(sys.path)
    path.write_text(OWN)
    yield path
    sys.path[:] = known
    sys.modules.pop("own_recipes", None)


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_is_whole(name: str) -> None:
    module = experiments.load(name)
    recipes = {n: v for n, v in vars(module).items() if isinstance(v, Recipe)}
    assert {"PAPER", "SMALL"} <= recipes.keys()
    for recipe in recipes.values():
        assert recipe.name == name
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert module.SMALL.algorithm.build().backbone is not None
    paths = dict(walk(module.SMALL))
    for path, space in module.SEARCH.items():
        assert path in paths
        values = space.values if isinstance(space, Choice) else (space.low, space.high)
        for value in values:
            replace_at(module.SMALL, path, value)
        inside = paths[path] in values if isinstance(space, Choice) else values[0] <= paths[path] <= values[1]
        assert inside, f"{path}: a search that cannot find {paths[path]}, which SMALL has"


# lr at the published batch, batch, weight decay, epochs, warm-up: MMSelfSup's configs, and the official code where a
# recipe follows that instead.
PUBLISHED = {
    "barlow_twins": (1.6, 2048, 1e-6, 300, 10),
    "byol": (4.8, 4096, 1e-6, 200, 10),
    "cae": (1.5e-3, 2048, 0.05, 300, 10),
    "deepcluster": (0.1, 512, 1e-5, 200, 0),
    "densecl": (0.03, 256, 1e-4, 200, 0),
    "mae": (2.4e-3, 4096, 0.05, 400, 40),
    "mae:PAPER_LARGE": (2.4e-3, 4096, 0.05, 400, 40),
    "moco": (0.03, 256, 1e-4, 200, 0),
    "moco:PAPER_V1": (0.03, 256, 1e-4, 200, 0),
    "moco_v3": (9.6, 4096, 1e-6, 100, 10),
    "moco_v3:PAPER_VIT": (2.4e-3, 4096, 0.1, 300, 40),
    "moco_v3:PAPER_VIT_BASE": (2.4e-3, 4096, 0.1, 300, 40),
    "npid": (0.03, 256, 1e-4, 200, 0),
    "odc": (0.06, 512, 1e-5, 440, 0),
    "relative_loc": (0.2, 512, 1e-4, 70, 5),
    "rotation_pred": (0.2, 128, 1e-4, 70, 5),
    "simclr": (0.3, 256, 1e-6, 200, 10),
    "simmim": (8e-4, 2048, 0.05, 100, 10),
    "simmim:PAPER_800": (4e-4, 2048, 0.05, 800, 10),
    "simsiam": (0.05, 256, 1e-4, 100, 0),
    "swav": (0.6, 256, 1e-6, 200, 0),
}


def test_every_algorithm_has_a_published_recipe() -> None:
    assert {name.partition(":")[0] for name in PUBLISHED} == set(experiments.names())


@pytest.mark.parametrize("name", PUBLISHED)
def test_paper_recipes_agree_with_the_published_table(name: str) -> None:
    scale = "auto" if ":" in name else "paper"
    recipe = resolve(experiments.load_recipe(name, scale).recipe, LARGE).recipe
    optimization, training = recipe.optimization, recipe.training
    lr, batch, decay, epochs, warmup = PUBLISHED[name]
    assert optimization.lr == pytest.approx(lr)
    assert (training.global_batch_size, training.epochs) == (batch, epochs)
    assert optimization.optimizer.kwargs["weight_decay"] == decay
    assert optimization.warmup_epochs == warmup


# The official codes of these hand all parameters to SGD or AdamW with one weight decay.
DECAYED = {
    "deepcluster",
    "densecl",
    "moco",
    "moco:PAPER_V1",
    "moco_v3:PAPER_VIT",
    "moco_v3:PAPER_VIT_BASE",
    "npid",
    "odc",
    "relative_loc",
    "rotation_pred",
    "simsiam",
    "swav",
}


@pytest.mark.parametrize("name", sorted({*PUBLISHED, *DECAYED}))
def test_biases_and_norms_are_decayed_where_the_official_code_does(name: str) -> None:
    recipe = experiments.load_recipe(name, "auto" if ":" in name else "paper").recipe
    if name == "cae":
        recipe = override(recipe, "algorithm.tokenizer", None)
    with without_memory():
        groups = recipe.algorithm.build().param_groups()
    decayed = {group.weight_decay > 0 for group in groups for p in group.params if p.ndim == 1}
    assert decayed == {name in DECAYED}


@pytest.mark.parametrize("name", ["deepcluster", "odc"])
def test_classifiers_of_clusters_have_no_momentum(name: str) -> None:
    algorithm = experiments.load(name).SMALL.algorithm.build()
    momentum = {id(p): group.momentum for group in algorithm.param_groups() for p in group.params}
    for path, p in algorithm.named_parameters():
        assert momentum[id(p)] == (0 if path.startswith("head.") else 1), path


def test_scale_follows_the_images() -> None:
    module = experiments.load("moco")
    assert experiments.load_recipe("moco", info=INFO).recipe is module.SMALL
    assert experiments.load_recipe("moco", info=LARGE).recipe is module.PAPER
    assert experiments.load_recipe("moco", "paper", INFO).recipe is module.PAPER
    assert experiments.load_recipe("moco", "small", LARGE).recipe is module.SMALL
    assert experiments.load_recipe("moco:PAPER_V1", info=INFO).recipe is module.PAPER_V1
    assert experiments.load_recipe("moco", info=INFO).origin.startswith(
        "SMALL of moco: the images, 28 x 28 px"
    )


def test_own_file(own: Path) -> None:
    for source in (str(own), f"{own}:TINY"):
        recipe = experiments.load_recipe(source, info=INFO).recipe
        assert recipe.to_json()["algorithm"]["head"]["loss"] == {"type": "own_recipes:OwnLoss"}
        assert Recipe.from_json(recipe.to_json()) == recipe


def test_own_file_whose_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    with pytest.raises(UserError, match="another module 'json'; rename the file"):
        experiments.load(str(tmp_path / "json.py"))
    sys.path.remove(str(tmp_path))


def test_recipe_json(tmp_path: Path) -> None:
    recipe = experiments.load("simclr").SMALL
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.to_json()))
    assert experiments.load_recipe(str(path)).recipe == recipe
    with pytest.raises(UserError, match="leave --scale small out"):
        experiments.load_recipe(str(path), "small")
    for text, message in (("{", "no JSON"), ("[]", "no recipe, but a list"), ("{}", "format None")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            experiments.load_recipe(str(path))
    with pytest.raises(UserError, match="No such file"):
        experiments.load_recipe(str(tmp_path / "absent.json"))


@pytest.mark.parametrize(
    ("source", "scale", "message"),
    [
        ("mooc", "auto", r"no experiment is called 'mooc'; did you mean 'moco'\?"),
        ("moco", "big", "scale: 'big'; allowed: auto, paper, small"),
        ("moco", "auto", "say paper or small"),
        ("moco:PAPER_V9", "auto", "moco has no recipe 'PAPER_V9'; did you mean 'PAPER_V1'"),
        ("moco:SMALL", "paper", "leave --scale paper out"),
        ("nowhere/file.py", "auto", "no such file"),
    ],
)
def test_says_what_it_cannot_load(source: str, scale: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        experiments.load_recipe(source, scale)


def test_spaces_refuse_what_is_empty() -> None:
    for make in (
        lambda: Uniform(1, 1),
        lambda: LogUniform(0, 1),
        lambda: LogUniform(2, 1),
        lambda: Choice(()),
    ):
        with pytest.raises(UserError, match=r"should be|at least one"):
            make()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import torch\nimport no_such_module\n", "line 2: ModuleNotFoundError"),
        ("SMALL = (\n", "SyntaxError"),
        ("x = 1\ny = x / 0\n", "line 2: ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(tmp_path: Path, code: str, said: str) -> None:
    file = tmp_path / f"broken_{said[-9:-5].lower().strip()}.py"
    file.write_text(code)
    with pytest.raises(UserError, match=said) as caught:
        experiments.load(str(file))
    assert str(file) in str(caught.value)
