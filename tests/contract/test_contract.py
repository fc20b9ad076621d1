"""What every algorithm owes its users, whichever it is: found by listing the experiments."""

import copy
import functools
import inspect
import io

import pytest
import torch
from torch import Tensor, nn

from ssl_ray.models import BaseModel, Output, Progress, ResNet
from ssl_ray.paths import walk
from ssl_ray.recipe import Recipe
from ssl_ray.spec import Spec
from ssl_ray.training.optim import AdamW, build_optimizer
from ssl_ray.training.step import micro_batches, take_step
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


# What keeps a network from learning by heart, by the name of the argument. A queue that holds the other of two batches
# holds no image of this one, which would be its own negative.
BY_HEART = {"dropout": 0.0, "drop_path": 0.0, "split_bn": 1, "queue_size": 32, "ensure_neg": True}
# A task of a size that fits so few images and steps: clusters that 64 images can fill, few or small hidden patches; and
# fewer layers, channels or tokens where a step would take long.
SMALLER = {
    "odc": {"algorithm.head.num_classes": 8, "algorithm.memory.num_clusters": 8},
    "cae": {"views.num_masked": 4, "algorithm.backbone.depth": 1},
    "simmim": {
        "views.mask_patch_size": 4,
        "views.patch_size": 4,
        "algorithm.backbone.patch_size": 4,
        "algorithm.backbone.window_size": 4,
    },
    "simsiam": {"algorithm.backbone.width": 8},
    "relative_loc": {"views.patch_side": 12},
}
# Where a perfect answer has no loss of 0.
FLOOR = {"simsiam": -1.0}
# What counts as learned, and where less does: pixels and tokens are many; features outnumber images, so that they
# cannot all be decorrelated; a softmax over cosines, and a code that is shared out among prototypes, keep a loss.
LEARNED = 0.9
SHARE = {
    "mae": 0.5,
    "simmim": 0.5,
    "barlow_twins": 0.8,
    "moco_v3": 0.75,
    "moco_v3_vit": 0.75,
    "swav": 0.7,
    "swav_without_queue": 0.7,
    "cae": 0.5,
}
# Steps. In the first, queues and banks hold random vectors, which are easily told from images. How many it takes
# depends on how a processor rounds as much as on the seed: a run ends where it has learned, and what is allowed is far
# more than most need.
AT_LEAST, AT_MOST = 10, 240
# A twin that learns nothing: where it is after more steps than many an algorithm needs.
OF_A_TWIN = 16


class Overfit:
    """Trains on two batches of 32 images, augmented once. shares: of the task, in the worse of the two, by step.

    Some necks and heads learn 32 images by heart from what a random backbone makes of them. So a task counts as learned
    where the backbone was told, too: most of its parameters had a gradient.
    """

    def __init__(self, name: str) -> None:
        settings = SMALLER.get(name, {})
        for path, value in walk(small.recipe(name, 32).algorithm, "algorithm"):
            leaf = path.rpartition(".")[2]
            if leaf in BY_HEART and (value or value is False):  # a queue of size 0 is none
                settings = settings | {path: BY_HEART[leaf]}
        self.run = Started(name, small.recipe(name, 32, settings), rows=64)
        self.wanted, self.floor = SHARE.get(name, LEARNED), FLOOR.get(name, 0.0)
        self.batches = list(micro_batches(self.run.views, self.run.samples, 2))
        self.shares: list[float] = []

    def train(self, steps: int) -> bool:
        """Whether it learns its task in that many steps; ends as soon as it has."""
        run, taken, told = self.run, [], set()
        backbone = {key: p for key, p in run.algorithm.backbone.named_parameters() if p.requires_grad}
        for key, p in backbone.items():
            p.register_hook(lambda grad, key=key: told.add(key) if grad.any() else None)
        optimizer = run.optimizer(lr=3e-3 if run.recipe.optimization.optimizer.target is AdamW else 0.05)
        for step in range(steps):
            progress = Progress(step, steps, step // 2, steps // 2)
            views, samples = self.batches[step % 2]
            step_taken = take_step(
                run.algorithm, run.algorithm, optimizer, views, samples, progress, clip_grad_norm=3.0
            )
            taken.append(step_taken.metrics)
            self.shares.append(min(learned(taken[0], metrics, self.floor) for metrics in taken[-2:]))
            if step >= AT_LEAST and self.shares[-1] >= self.wanted:
                return len(told) > len(backbone) / 2
        return False


@every_algorithm
def test_it_overfits_64_real_images(name):
    """It solves its task, without giving all images the same embedding."""
    overfit = Overfit(name)
    run = overfit.run
    assert overfit.train(AT_MOST), [round(share, 2) for share in overfit.shares]
    with torch.no_grad():
        prediction = run.algorithm(run.views, run.samples, mode="predict")
    if isinstance(prediction, Tensor) and prediction.ndim == 2:
        spread = nn.functional.normalize(prediction, dim=1).std(0).mean() * prediction.shape[1] ** 0.5
        assert spread > 0.2, "embeddings collapsed"


def uphill(algorithm: BaseModel) -> None:
    """Every gradient with the wrong sign."""
    for p in algorithm.parameters():
        if p.requires_grad:
            p.register_hook(torch.neg)


@every_algorithm
def test_a_twin_that_goes_uphill_does_not(name):
    """What the test above takes for learned is nothing that a broken algorithm reaches."""
    twin = Overfit(name)
    uphill(twin.run.algorithm)
    assert not twin.train(OF_A_TWIN)
    assert max(twin.shares[AT_LEAST:]) < twin.wanted / 2, [round(share, 2) for share in twin.shares]


def test_a_twin_whose_backbone_hears_nothing_does_not():
    """Its loss is cut off from the backbone: NPID's neck alone learns all the images by heart."""
    twin = Overfit("npid")
    for p in twin.run.algorithm.backbone.parameters():
        if p.requires_grad:
            p.register_hook(torch.zeros_like)
    assert not twin.train(OF_A_TWIN)
    assert max(twin.shares[AT_LEAST:]) >= twin.wanted, "what the backbone is told counts for something"


def learned(first: dict[str, Tensor], now: dict[str, Tensor], floor: float) -> float:
    """Share of the task: an accuracy if the loss reports one, else of the loss's way from `first` to `floor`."""
    accuracies = [value.item() for key, value in now.items() if key.endswith(("_top1", "_accuracy"))]
    if accuracies:
        return min(accuracies)
    return ((first["loss"] - now["loss"]) / (first["loss"] - floor)).item()


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


# What the compiler meets in no other of them: one for each kind of loss. The others, made of the same parts, are
# compiled where all recipes are trained.
COMPILED = {
    "moco": "contrastive: a teacher under no_grad, its shuffled batches, and a queue",
    "byol": "distillation: a predictor, a teacher, and targets without gradient",
    "barlow_twins": "a correlation over the batch, in a head with a batch norm",
    "swav": "clustering: Sinkhorn's loop, and views of two sizes",
    "odc": "clustering: losses of rows against labels in a memory",
    "mae": "masked: patches gathered by a mask of drawn numbers",
    "cae": "masked: two networks and a tokenizer",
    "relative_loc": "predictive: pairs of patches, and labels made on the way",
}


@pytest.mark.parametrize(
    "name",
    [name if name in COMPILED else pytest.param(name, marks=pytest.mark.recipes) for name in small.NAMES],
)
def test_the_loss_compiles(name, compiler):
    """On a backbone as small as its kind can be: the algorithm's own code is what is compiled."""
    backbone = small.recipe(name, ROWS).algorithm.kwargs["backbone"]
    tiny = {"algorithm.backbone": Spec(OwnConvolutions)}
    if not issubclass(backbone.target, ResNet):
        tiny = {
            f"algorithm.backbone.{key}": value
            for key, value in (("depth", 1), ("depths", (1, 1)))
            if key in backbone.kwargs
        }
    elif backbone.target is not ResNet:
        tiny = {}  # one of its own kind
    run = Started(name, small.recipe(name, ROWS, tiny))
    expected = run.loss().loss.item()
    run.algorithm.compile(backend=compiler)
    assert run.loss().loss.item() == pytest.approx(expected, rel=1e-4)
    assert compiler.op_count > 0


@every_algorithm
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
