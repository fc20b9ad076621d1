"""What the fields of a recipe do to a step: each against the plain step, or a formula."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_ray.models import BaseModel, Progress
from ssl_ray.training.gradients import GradientMonitor
from ssl_ray.training.optim import build_optimizer
from ssl_ray.training.step import Step, begin_epoch, seed_generators, step_seed, take_step
from tests import small

ROWS = 16
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PROGRESS = Progress(0, 10, 0, 1)


class Run:
    """A SMALL algorithm, its optimiser and a batch of real views, in float64 unless told."""

    def __init__(self, name: str = "mae", dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(0)
        self.recipe = small.recipe(name, ROWS)
        self.algorithm: BaseModel = self.recipe.algorithm.build().to(dtype)
        views, self.samples = small.batch(self.recipe, ROWS)
        self.views = [view.to(dtype) for view in self.algorithm.data_preprocessor(views)]
        self.optimizer = build_optimizer(
            self.recipe.optimization.optimizer, self.algorithm.param_groups(), lr=0.01
        )
        self.before = copy.deepcopy(self.algorithm.state_dict())

    def step(self, model: Any = None, **fields: Any) -> Step:
        torch.manual_seed(1)
        return take_step(
            self.algorithm,
            model or self.algorithm,
            self.optimizer,
            self.views,
            self.samples,
            PROGRESS,
            **fields,
        )

    def weights(self) -> dict[str, Tensor]:
        return dict(self.algorithm.named_parameters())


def assert_same_weights(one: Run, other: Run, **tolerance: float) -> None:
    for name, weight in one.weights().items():
        torch.testing.assert_close(
            weight, other.weights()[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


def test_the_optimiser_forgets_a_classifier_that_starts_anew() -> None:
    run = Run("deepcluster", torch.float32)
    extract = small.extract(run.recipe, run.algorithm)
    begin_epoch(run.algorithm, run.optimizer, PROGRESS, extract)
    run.step()
    trained = {p for p in run.algorithm.parameters() if p in run.optimizer.state}
    assert trained == set(run.algorithm.parameters())
    begin_epoch(run.algorithm, run.optimizer, PROGRESS._replace(epoch=1), extract)
    assert set(run.optimizer.state) == trained, (
        "the same clusters: DeepCluster's SMALL makes them every second epoch"
    )
    begin_epoch(run.algorithm, run.optimizer, PROGRESS._replace(epoch=2), extract)
    head = run.algorithm.head
    assert head is not None
    assert trained - set(run.optimizer.state) == set(head.parameters())


def test_the_plain_step_is_the_optimisers() -> None:
    ours, plain = Run(), Run()
    metrics, taken, _ = ours.step()
    torch.manual_seed(1)
    output = plain.algorithm(plain.views, plain.samples, mode="loss")
    output.loss.backward()
    squares = [p.grad.square().sum() for p in plain.algorithm.parameters() if p.grad is not None]
    plain.optimizer.step()
    assert taken
    assert metrics["loss"].item() == output.loss.item()
    assert metrics["grad_norm"].item() == pytest.approx(torch.stack(squares).sum().sqrt().item())
    assert_same_weights(ours, plain, rtol=0, atol=0)
    assert all(p.grad is None for p in ours.algorithm.parameters())


@pytest.mark.parametrize("count", [2, 4])
def test_accumulated_micro_batches_are_one_step(count: int) -> None:
    """MAE's loss is a mean over rows with the same number of patches each, and it has no batch norm."""
    whole, parts = Run(), Run()
    for run in (whole, parts):  # AdamW makes whole steps of what rounding leaves of a gradient that is 0
        run.optimizer = torch.optim.SGD(run.algorithm.parameters(), lr=1.0)
    expected, got = whole.step().metrics, parts.step(accumulate=count).metrics
    assert got["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-12)
    assert_same_weights(whole, parts, rtol=1e-9, atol=1e-12)


def test_memories_get_the_rows_of_all_micro_batches() -> None:
    run = Run("moco")
    run.algorithm.split_bn = 1
    run.step(accumulate=4)
    queue = run.algorithm.queue
    assert queue.pointer.item() == ROWS
    changed = (queue.rows != run.before["queue.rows"]).any(1)
    assert changed[:ROWS].all()
    assert not changed[ROWS:].any()


def test_clipping_scales_the_gradient_of_the_whole_network() -> None:
    clipped, plain = Run("simclr"), Run("simclr")
    clipped.optimizer = torch.optim.SGD(clipped.algorithm.parameters(), lr=1.0)
    plain.optimizer = torch.optim.SGD(plain.algorithm.parameters(), lr=1.0)
    norm = plain.step().metrics["grad_norm"]
    assert clipped.step(clip_grad_norm=norm.item() / 10).metrics["grad_norm"] == norm, (
        "told before it is clipped"
    )
    for name, weight in clipped.weights().items():
        moved, whole = weight - clipped.before[name], plain.weights()[name] - plain.before[name]
        torch.testing.assert_close(moved, whole / 10, rtol=1e-4, atol=1e-12)
    untouched = Run("simclr")
    untouched.optimizer = torch.optim.SGD(untouched.algorithm.parameters(), lr=1.0)
    untouched.step(clip_grad_norm=norm.item() * 10)
    assert_same_weights(untouched, plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["moco", "mae"])
def test_bf16_computes_in_bf16_and_keeps_the_weights_in_float32(name: str) -> None:
    low, full = Run(name, torch.float32), Run(name, torch.float32)
    for run in (low, full):  # batch norm of two rows leaves of them which is larger: a rounding decides that
        run.algorithm.split_bn = 1
    seen = set()
    for module in low.algorithm.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(lambda m, args, out: seen.add(out.dtype))
    got, expected = low.step(precision="bf16").metrics["loss"], full.step().metrics["loss"]
    assert seen == {torch.bfloat16}
    assert got.item() == pytest.approx(expected.item(), rel=0.05)
    assert got.item() != expected.item()
    assert all(p.dtype == torch.float32 for p in low.algorithm.parameters())


def test_channels_last_changes_the_layout_and_not_the_numbers() -> None:
    last, plain = Run("simclr"), Run("simclr")
    last.algorithm.to(memory_format=torch.channels_last)
    last.views = [view.contiguous(memory_format=torch.channels_last) for view in last.views]
    assert last.step().metrics["loss"].item() == pytest.approx(plain.step().metrics["loss"].item(), rel=1e-10)
    assert_same_weights(last, plain, rtol=1e-6, atol=1e-10)


def test_a_compiled_step_is_the_same_step(compiler: Any) -> None:
    compiled, plain = Run(dtype=torch.float32), Run(dtype=torch.float32)
    compiled.algorithm.compile(backend=compiler)
    assert compiled.step().metrics["loss"].item() == pytest.approx(
        plain.step().metrics["loss"].item(), rel=1e-5
    )
    assert_same_weights(compiled, plain, rtol=1e-3, atol=1e-4)
    assert compiler.op_count > 0


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float, accumulate: int) -> None:
    run = Run("moco")
    run.algorithm.split_bn = 1
    run.views[0][0, 0, 0, 0] = bad
    metrics, taken, _ = run.step(accumulate=accumulate)
    assert not taken
    assert not torch.isfinite(metrics["grad_norm"])
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in run.algorithm.state_dict().items():
        if not name.endswith(statistics):
            assert torch.equal(value, run.before[name]), name
    assert all(p.grad is None for p in run.algorithm.parameters())
    assert not run.optimizer.state


def test_seeds_differ_by_run_step_and_rank() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(5) for step in range(20) for rank in range(4)}
    assert len(seeds) == 5 * 20 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_generators_are_where_torchs_own_function_puts_them(device: str) -> None:
    seed = step_seed(1, 2, 3)
    seed_generators(seed, torch.device(device))
    ours = torch.rand(5, device=device)
    torch.manual_seed(seed)
    assert torch.equal(ours, torch.rand(5, device=device))


def test_a_gradient_of_zero_is_told_from_a_small_one() -> None:
    run = Run("simclr")
    assert not run.step().zero
    with torch.no_grad():
        run.algorithm.neck.fc1.weight.mul_(1e-6)
    assert not run.step().zero
    images = [view[:1] for view in run.views]
    alone = take_step(run.algorithm, run.algorithm, run.optimizer, images, run.samples, PROGRESS)
    assert (alone.taken, alone.zero) == (True, True), "one image has nothing to be told from"


def test_a_standstill_is_said_once_and_names_the_step_it_began_with() -> None:
    zeros = [False, True, True, False, True, True, True, True, False, True, True, True]
    said: list[tuple[int, str]] = []
    step = 0
    monitor = GradientMonitor(lambda line: said.append((step, line)), max_nonfinite_steps=1)
    for step, zero in enumerate(zeros, start=1):
        monitor(step, Step({}, taken=True, zero=zero))
    ((when, line),) = said
    assert when == 7
    assert "the gradient is exactly 0 since step 5 (3 steps in a row)" in line
