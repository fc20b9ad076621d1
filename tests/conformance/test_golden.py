"""Our algorithms against numbers recorded from MMSelfSup, in float64. See golden/README.md."""

import copy
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ssl_ray.interop import mmselfsup
from ssl_ray.models import Output, Progress
from tests.conformance.orders import order_of
from tests.conformance.orders.order import gradients

FOLDER = Path(os.environ.get("SSL_RAY_GOLDEN", Path(__file__).parent / "golden"))
LOSS, TRACE, TENSOR, CHECKSUM = 1e-9, 1e-8, 1e-6, 1e-6
SINGLE = 1e-5  # of a run that was recorded in float32


class Run(NamedTuple):
    """One recorded run of one file: the main one, or a variant from the same weights."""

    path: Path
    variant: str | None

    def __str__(self) -> str:
        name = self.path.relative_to(FOLDER).with_suffix("").as_posix()
        return name + (f"-{self.variant}" if self.variant else "")


@functools.cache
def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def holds_an_algorithm(path: Path) -> bool:
    """What a file holds says what it is, not its name: a run of an algorithm, or records of modules, or neither."""
    content = read(path)
    return isinstance(content, dict) and "model" in content.get("config", ())


PATHS = sorted(FOLDER.rglob("*.pt"))
FILES = [path for path in PATHS if holds_an_algorithm(path)]
RUNS = [Run(path, variant) for path in FILES for variant in (None, *read(path).get("variants", ()))]
MAIN = [run for run in RUNS if run.variant is None]
every_run = pytest.mark.parametrize("run", RUNS, ids=str)
main_runs = pytest.mark.parametrize("run", MAIN, ids=str)


class Case:
    """A fresh model in the recorded state, its inputs, and what MMSelfSup made of them."""

    def __init__(self, run: Run) -> None:
        self.record = read(run.path)
        kind = self.record["config"]["model"]["type"].rpartition(".")[2]
        if kind not in mmselfsup.ALGORITHMS:
            pytest.skip(f"{kind} is not among the algorithms here")
        part = self.record["variants"][run.variant] if run.variant else self.record
        self.outputs = part["outputs"]
        self.draws = part["random"]
        self.extra = self.record["extra"] | part["extra"]
        self.order = order_of(kind)
        self.views = self.order.views([view.double() for view in self.record["inputs"]])
        self.state_dict = self.record["state_dict"] | part.get("state_override", {})
        self.model = self.order.model(self.record, part.get("state_override", {}), self.extra)

    def bound(self, exact: float) -> float:
        return SINGLE if self.outputs.get("computed_in") == "float32" else exact

    def samples(self, call: str) -> dict[str, Tensor]:
        return self.order.samples(self.draws[call], self.extra)

    def progress(self, step: int) -> Progress:
        return self.order.progress(step, self.extra, self.record)

    def loss(self, call: str, step: int) -> Output:
        return self.order.loss(self.model, self.views, self.samples(call), self.progress(step))


class First(NamedTuple):
    """What one loss call, its backward pass and its updates of state came to."""

    case: Case
    output: Output
    grads: dict[str, Tensor]
    state: dict[str, Tensor]


@functools.cache
def first_call(run: Run) -> First:
    case = Case(run)
    output = case.loss("loss", 0)
    output.loss.backward()
    case.order.write_memories(case.model, output, case.progress(0))
    return First(case, output, gradients(case.model), mmselfsup.to_state_dict(case.model))


def test_there_are_recordings():
    assert PATHS, f"no *.pt in {FOLDER}"


@every_run
def test_loss_and_its_parts(run):
    first = first_call(run)
    bound = first.case.bound(LOSS)
    assert first.output.loss.item() == pytest.approx(first.case.outputs["loss"], rel=bound)
    check_parts(first.case, first.output, first.case.outputs["losses"], bound)


@main_runs
def test_gradients(run):
    first = first_call(run)
    recorded, zero = first.case.outputs["grads"], set(first.case.outputs["zero_grads"])
    largest = max(grad.abs().max().item() for grad in recorded.values())
    assert set(recorded) | zero == set(first.grads) | zero
    for name in recorded.keys() - zero:
        worst = (first.grads[name] - recorded[name]).abs().max().item()
        assert worst <= TENSOR * largest, f"{name}: {worst / largest:.1e} of the largest gradient"
    for name in zero & set(first.grads):
        assert first.grads[name].abs().max().item() <= TENSOR * largest, name


@main_runs
def test_state_after(run):
    first = first_call(run)
    before = first.case.state_dict
    recorded = without_counter(first.case, before | first.case.outputs["state_after"])
    for name, value in recorded.items():
        check_tensor(first.state[name], value, name)
    outside = first.case.order.outside_state(first.case.model)
    for name, value in first.case.outputs.get("outside_state_after", {}).items():
        check_tensor(outside[name], value, name)


@pytest.mark.parametrize("run", [run for run in RUNS if run.variant], ids=str)
def test_variant_gradients_and_state(run):
    first = first_call(run)
    case = first.case
    check_sums(case, first.grads, case.outputs["grads_checksum"])
    check_sums(case, first.state, without_counter(case, case.outputs["state_after_checksum"]))


@main_runs
@pytest.mark.parametrize("mode", ["features", "features_eval"])
def test_features(run, mode):
    case = Case(run)
    if mode not in case.outputs:
        pytest.skip("the recording has no difference between train and eval mode")
    case.model.train(mode == "features")
    features = case.order.features(case.model, case.views, case.samples(mode))
    ours, recorded = tensors(features), tensors(case.outputs[mode])
    assert len(ours) == len(recorded)
    for i, (mine, theirs) in enumerate(zip(ours, recorded, strict=True)):
        check_tensor(mine, theirs, f"{mode}[{i}]")


@main_runs
def test_predict(run):
    case = Case(run)
    if "predict" not in case.outputs:
        pytest.skip("MMSelfSup predicts nothing for this algorithm")
    case.model.eval()
    recorded = case.outputs["predict"]
    ours = case.order.prediction(case.model, case.views, case.samples("predict"), recorded)
    for name, value in recorded.items():
        check_tensor(ours[name], value, name)


@every_run
def test_five_steps_in_mmselfsups_order(run):
    case = Case(run)
    trace = case.outputs["trace"]
    optimizer = case.order.optimizer(case.record, case.model)
    for i, recorded in enumerate(trace["losses"]):
        output = case.loss(f"trace_{i}", i)
        assert output.loss.item() == pytest.approx(recorded, rel=case.bound(TRACE)), f"loss {i}"
        check_parts(case, output, trace["parts"][i], case.bound(TRACE))
        if i < len(trace["losses"]) - 1:
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        case.order.write_memories(case.model, output, case.progress(i))
        if i < len(trace["losses"]) - 1:
            case.order.after_iteration(case.model, case.extra, i + 1)
    check_sums(case, mmselfsup.to_state_dict(case.model), without_counter(case, trace["final_checksum"]))


@every_run
def test_five_steps_in_our_order_have_the_same_losses(run):
    """A teacher that moves after step k is the one that moves at the start of step k + 1."""
    case = Case(run)
    model, losses = case.model, case.outputs["trace"]["losses"]
    if not case.order.same_losses_in_our_order:
        pytest.skip("our order of events is another one by design: see the order's file")
    if hasattr(model, "teacher"):
        model.teacher.update(model.backbone, model.neck, case.order.momentum(model, case.progress(0)))
    optimizer = case.order.optimizer(case.record, model)
    for i, recorded in enumerate(losses):
        progress = case.progress(i)
        output = model(case.views, case.samples(f"trace_{i}"), mode="loss")
        assert output.loss.item() == pytest.approx(recorded, rel=case.bound(TRACE)), f"loss {i}"
        optimizer.zero_grad()
        output.loss.backward()
        model.before_step(progress)
        optimizer.step()
        model.after_step(output.state, progress)


@main_runs
def test_state_dict_survives_the_round_trip(run):
    case = Case(run)
    other = copy.deepcopy(case.model)
    for p in other.parameters():
        p.data.zero_()
    mmselfsup.load_state_dict(other, mmselfsup.to_state_dict(case.model))
    ours = other.state_dict()
    for name, value in case.model.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
    assert set(mmselfsup.to_state_dict(case.model)) == set(case.state_dict)


def check_parts(case: Case, output: Output, recorded: dict[str, float], bound: float) -> None:
    ours = {"loss": output.loss, **output.metrics}
    for name, value in recorded.items():
        rel = SINGLE if name in case.order.single_parts else bound
        assert ours[case.order.part_names.get(name, name)].item() == pytest.approx(value, rel=rel), name


def check_tensor(ours: Tensor, recorded: Tensor, name: str) -> None:
    recorded = recorded.double()
    assert ours.shape == recorded.shape, name
    worst, largest = (ours.double() - recorded).abs().max().item(), recorded.abs().max().item()
    assert worst <= TENSOR * largest, f"{name}: off by {worst:.2e}, largest entry {largest:.2e}"


def check_sums(case: Case, ours: dict[str, Tensor], recorded: dict[str, list[float]]) -> None:
    rel = case.bound(CHECKSUM)
    zero = 1e-12 if rel == CHECKSUM else 1e-6
    for name, (total, total_abs, norm) in recorded.items():
        mine = ours[name].double()
        assert mine.abs().sum().item() == pytest.approx(total_abs, rel=rel, abs=zero), name
        assert mine.norm().item() == pytest.approx(norm, rel=rel, abs=zero), name
        assert mine.sum().item() == pytest.approx(total, abs=rel * total_abs + zero), name


def without_counter(case: Case, recorded: dict[str, Any]) -> dict[str, Any]:
    """MMSelfSup counts teacher updates; all that matters here is whether there was one, and loading sees to that."""
    counter = mmselfsup.ALGORITHMS[type(case.model).__name__].counter
    return {name: value for name, value in recorded.items() if name != counter}


def tensors(features: Any) -> list[Tensor]:
    if isinstance(features, Tensor):
        return [features]
    parts = features.values() if isinstance(features, dict) else features
    return [tensor for part in parts for tensor in tensors(part)]


def test_a_foreign_algorithm_is_skipped_by_name(tmp_path):
    torch.save({"config": {"model": {"type": "mmselfsup.Foreign"}}}, tmp_path / "foreign.pt")
    with pytest.raises(pytest.skip.Exception, match="Foreign"):
        Case(Run(tmp_path / "foreign.pt", None))
