"""What every algorithm owes its users, whichever it is: found by listing the experiments."""

import copy
import functools
import inspect
import io

import pytest
import torch
from torch import Tensor, nn

from ssl_ray.models import BaseModel, Output, Progress, ResNet
from ssl_ray.recipe import Recipe
from ssl_ray.spec import Spec
from ssl_ray.training.optim import build_optimizer
from tests import small

ROWS = 16
every_algorithm = pytest.mark.parametrize("name", small.NAMES)


class Started:
    """An algorithm in training at its first step, with a batch of real views."""

    def __init__(self, name: str, recipe: Recipe | None = None, rows: int = ROWS) -> None:
        self.recipe = recipe or small.recipe(name, rows)
        torch.manual_seed(0)
        self.algorithm: BaseModel = self.recipe.algorithm.build()
        self.views, self.samples = small.batch(self.recipe, rows)
        self.extract = small.extract(self.recipe, self.algorithm)
        self.progress = Progress(0, 10, 0, 10)
        self.algorithm.before_epoch(self.progress, self.extract)

    def loss(self, seed: int = 1) -> Output:
        torch.manual_seed(seed)
        output: Output = self.algorithm(self.views, self.samples, mode="loss")
        return output

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        return build_optimizer(self.recipe.optimization.optimizer, self.algorithm.param_groups(), lr)

    def step(self, optimizer: torch.optim.Optimizer, seed: int = 1) -> Output:
        optimizer.zero_grad()
        output = self.loss(seed)
        output.loss.backward()
        self.algorithm.before_step(self.progress)
        optimizer.step()
        self.algorithm.after_step(output.state, self.progress)
        return output


@functools.cache
def started(name: str) -> Started:
    return Started(name)


def fresh(name: str) -> Started:
    """As `started`, for tests that change it."""
    return copy.deepcopy(started(name))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}


def batch_norm_statistics(module: nn.Module) -> set[str]:
    return {
        f"{name}.{buffer}".removeprefix(".")
        for name, m in module.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
        for buffer, _ in m.named_buffers()
    }


@every_algorithm
def test_attributes_have_the_fields_names(name):
    algorithm = started(name).algorithm
    assert set(dict(algorithm.named_children())) <= {
        "backbone", "neck", "head", "memory", "teacher", "queue", "dense_queue", "tokenizer", "data_preprocessor",
    }  # fmt: skip
    assert algorithm.backbone.feature_dim > 0


@every_algorithm
def test_three_modes_and_no_fourth(name):
    run = started(name)
    with torch.no_grad():
        features = run.algorithm(run.views, run.samples, mode="tensor")
        prediction = run.algorithm(run.views, run.samples, mode="predict")
        embedding = run.algorithm.embed(run.views)
    assert all(torch.isfinite(t).all() for t in leaves(features))
    assert leaves(prediction)
    assert all(len(t) % ROWS == 0 for t in leaves(prediction))
    assert embedding.shape == (ROWS, run.algorithm.backbone.feature_dim)
    with pytest.raises(ValueError, match="'tensor', 'loss', 'predict'"):
        run.algorithm(run.views, run.samples, mode="train")


@every_algorithm
def test_loss_is_a_scalar_with_detached_parts_and_rowwise_state(name):
    output = fresh(name).loss()
    assert output.loss.shape == ()
    assert torch.isfinite(output.loss)
    assert all(m.shape == () and not m.requires_grad for m in output.metrics.values())
    assert all(not s.requires_grad and len(s) % ROWS == 0 for s in output.state.values())


@every_algorithm
def test_loss_writes_nothing_but_batch_norm_statistics(name):
    run = fresh(name)
    before = state(run.algorithm)
    first = run.loss()
    assert changed(before, run.algorithm) <= batch_norm_statistics(run.algorithm)
    assert (
        run.loss().loss.item() == first.loss.item()
    )  # batch norm in training does not look at what it gathered


@every_algorithm
def test_gradients_reach_what_is_trained_and_nothing_else(name):
    run = fresh(name)
    run.loss().loss.backward()
    groups = {id(p) for group in run.algorithm.param_groups() for p in group.params}
    for key, p in run.algorithm.named_parameters():
        trained = not key.startswith(("teacher.", "tokenizer.")) and p.requires_grad
        assert (p.grad is not None) == trained, key
        assert (id(p) in groups) == p.requires_grad, key
        if trained:
            assert torch.isfinite(p.grad).all(), key
    assert len(groups) == sum(len(group.params) for group in run.algorithm.param_groups()), "each once"


@every_algorithm
@pytest.mark.slow
def test_saved_and_restored_it_goes_on_with_the_same_losses(name):
    run = fresh(name)
    optimizer = run.optimizer(lr=0.01)
    run.step(optimizer)
    kept = io.BytesIO()
    torch.save({"algorithm": run.algorithm.state_dict(), "optimizer": optimizer.state_dict()}, kept)
    expected = [run.step(optimizer, seed).loss.item() for seed in (2, 3)]

    kept.seek(0)
    content = torch.load(kept, weights_only=True)
    torch.manual_seed(99)
    again = fresh(name)
    again.algorithm = again.recipe.algorithm.build()
    again.algorithm.load_state_dict(content["algorithm"])
    restored = again.optimizer(lr=0.01)
    restored.load_state_dict(content["optimizer"])
    assert [again.step(restored, seed).loss.item() for seed in (2, 3)] == expected


@every_algorithm
@pytest.mark.slow
def test_bf16_autocast_stays_finite(name):
    run = fresh(name)
    reference = run.loss().loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        output = run.loss()
    output.loss.backward()
    assert output.loss.item() == pytest.approx(reference, rel=0.1, abs=0.1)
    assert all(torch.isfinite(p.grad).all() for p in run.algorithm.parameters() if p.grad is not None)


@every_algorithm
def test_the_teacher_moves_and_takes_no_gradient(name):
    run = fresh(name)
    teacher = getattr(run.algorithm, "teacher", None)
    if teacher is None:
        pytest.skip(f"{name} has no teacher")
    before = {key: p.clone() for key, p in teacher.named_parameters()}
    optimizer = run.optimizer(lr=0.01)
    run.step(optimizer)
    run.step(optimizer)
    moved = {key for key, p in teacher.named_parameters() if not torch.equal(p, before[key])}
    assert len(moved) > len(before) / 2
    assert not any(p.requires_grad for p in teacher.parameters())


@every_algorithm
@pytest.mark.slow
def test_it_overfits_64_real_images(name):
    run = Started(name, small.recipe(name, 64), rows=64)
    optimizer = run.optimizer(lr=run.recipe.optimization.lr)
    losses = [run.step(optimizer).loss.item() for _ in range(40)]
    spread = max(losses[0], 1.0)
    assert min(losses[-5:]) < losses[0] - 0.05 * abs(spread), losses


@every_algorithm
@pytest.mark.slow
def test_the_loss_compiles(name):
    run = fresh(name)
    expected = run.loss().loss.item()
    run.algorithm.compile(backend="aot_eager")
    assert run.loss().loss.item() == pytest.approx(expected, rel=1e-4)


class OwnConvolutions(nn.Module):
    """A user's backbone: a tuple of maps, and the width of the last."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.feature_dim = width
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.layers(x),)


@every_algorithm
@pytest.mark.slow
def test_a_users_own_backbone_plugs_in(name):
    spec = small.recipe(name, ROWS).algorithm.kwargs["backbone"]
    if spec.target is ResNet:
        own = Spec(OwnConvolutions)
    else:  # a Transformer of its own kind: what a user would derive from
        derived = type(
            f"Own{spec.name}", (spec.target,), {"__module__": __name__, "__init__": spec.target.__init__}
        )
        globals()[derived.__name__] = derived
        own = Spec(derived, **spec.kwargs)
    recipe = small.recipe(name, ROWS, {"algorithm.backbone": own})
    assert Recipe.from_json(recipe.to_json()) == recipe
    run = Started(name, recipe)
    assert type(run.algorithm.backbone) is own.target
    assert torch.isfinite(run.step(run.optimizer(0.01)).loss)


@every_algorithm
def test_every_argument_is_documented(name):
    target = started(name).recipe.algorithm.target
    common = {"self", "backbone", "neck", "head", "pretrained", "data_preprocessor"}
    arguments = set(inspect.signature(target.__init__).parameters) - common
    for argument in arguments:
        assert argument in target.__doc__, argument


def leaves(tree: object) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, list | tuple):
        return [leaf for part in tree for leaf in leaves(part)]
    if isinstance(tree, dict):
        return leaves(list(tree.values()))
    return []
