"""What a run does besides learning: skips, warns, evaluates, saves and stops; whole runs, in this process."""

import math
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ssl_ray.console import TrainStatus
from ssl_ray.data.blocks import Broken
from ssl_ray.data.source import Dataset, open_dataset
from ssl_ray.errors import UserError
from ssl_ray.evaluation.online import OnlineEvaluation
from ssl_ray.models import Progress, SwAVLoss
from ssl_ray.recipe import overrides
from ssl_ray.spec import Spec
from ssl_ray.training import lookout
from ssl_ray.training.context import LocalContext
from ssl_ray.training.folder import RunFolder
from ssl_ray.training.lookout import Lookout
from tests.training import local
from tests.training.local import STEPS, STEPS_PER_EPOCH

SAVE_ALL = ["training.checkpoint_steps=1"]


def readings(run: local.Run | LocalContext) -> list[TrainStatus]:
    return [message for message in run.messages if isinstance(message, TrainStatus)]


def test_it_learns(tmp_path: Path) -> None:
    job = local.job("mae", ["training.epochs=4", "optimization.base_lr=0.01"])
    losses = [reading.loss for reading in readings(local.train(job, tmp_path))]
    assert len(losses) == 4 * STEPS_PER_EPOCH
    first, last = losses[:STEPS_PER_EPOCH], losses[-STEPS_PER_EPOCH:]
    assert sum(last) < 0.8 * sum(first)


class Spoilt(LocalContext):
    """The gradient of some steps is not a number. steps: counted from 0."""

    steps: frozenset[int] = frozenset()

    def wrap(self, algorithm: nn.Module) -> nn.Module:
        backward = iter(range(10**6))

        def spoil(gradient: Tensor) -> Tensor:
            return gradient * (math.nan if next(backward) in self.steps else 1.0)

        next(p for p in algorithm.parameters() if p.requires_grad).register_hook(spoil)
        return super().wrap(algorithm)


def spoilt(job: Any, folder: Path, *steps: int) -> Spoilt:
    context = Spoilt(job.stream, RunFolder.at(str(folder), "run"), keep=100)
    context.steps = frozenset(steps)
    return context


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_told(tmp_path: Path) -> None:
    job = local.job("moco", [*SAVE_ALL, "training.max_steps=7"])
    run = local.train(job, tmp_path, context=spoilt(job, tmp_path, 3, 4))
    assert run.summary["steps"] == 7
    loss = {reading.step: reading.loss for reading in readings(run)}
    assert run.said == [
        f"step {step}: the gradient is not finite (loss {loss[step]:.4g}); step skipped" for step in (4, 5)
    ]
    before, after, skipped, twice, then = (
        {"optimizer": content["optimizer"]["state"], "algorithm": without_batch_norm(content["algorithm"])}
        for content in map(local.content, run.checkpoints[1:6])
    )
    local.assert_same(skipped, after)
    local.assert_same(twice, after)
    for earlier, later in ((before, after), (twice, then)):
        for name in (
            "queue.rows",
            "queue.pointer",
            "backbone.conv1.weight",
            "teacher.backbone.conv1.weight",
        ):
            assert not torch.equal(earlier["algorithm"][name], later["algorithm"][name]), name


def without_batch_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its statistics are of the forward pass, which was as always."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(statistics)}


def test_too_many_in_a_row_end_the_run_with_the_reason(tmp_path: Path) -> None:
    job = local.job("moco", ["training.max_nonfinite_steps=3"])
    context = spoilt(job, tmp_path, 1, 2, 4, 5, 6)
    with pytest.raises(
        UserError, match=r"^the gradient is not finite since step 5 \(3 steps in a row\); lower"
    ):
        local.train(job, tmp_path, context=context)
    assert [line.partition(":")[0] for line in context.messages if isinstance(line, str)] == [
        f"step {step}" for step in (2, 3, 5, 6, 7)
    ]


class Unbalanced(SwAVLoss):
    """SwAV whose codes nothing shares out: soon one prototype holds all images."""

    def codes(self, scores: Any, queued: Any = None, use_queue: Any = None) -> Tensor:
        codes: Tensor = (scores[:, list(self.crops_for_assign)] / self.epsilon).softmax(-1)
        return codes


def test_a_collapse_ends_the_run_where_that_is_asked_for(tmp_path: Path) -> None:
    settings = [
        "algorithm.queue_size=0",
        "algorithm.freeze_prototypes_epochs=0",
        "training.epochs=20",
        "evaluation.every_epochs=1",
        "evaluation.on_collapse=stop",
    ]
    recipe = local.job("swav", settings).recipe
    collapsing = overrides(recipe, {"algorithm.head.loss": Spec(Unbalanced, temperature=0.1, epsilon=0.03)})
    run = local.train(local.job(collapsing), tmp_path)
    steps = run.summary["steps"]
    assert run.summary["collapsed"]
    assert 0 < steps < 20 * STEPS_PER_EPOCH
    (alarm,) = run.summary["alarms"]
    assert alarm.startswith(f"cluster collapse since step {steps} (not yet at step ")
    assert run.said == [alarm]
    assert run.last["next_step"] == steps
    assert [e["step"] for e in run.summary["evaluations"]] == list(range(0, steps + 1, STEPS_PER_EPOCH))

    again = local.train(local.job(collapsing), tmp_path)
    assert again.summary["steps"] > steps
    (still,) = again.summary["alarms"]
    assert f"since step {steps} " in still, "the alarm knows after the stop what it knew before"

    go_on = {"evaluation.on_collapse": "warn", "training.max_steps": again.summary["steps"] + 3}
    warned = local.train(local.job(overrides(collapsing, go_on)), tmp_path)
    assert not warned.summary["collapsed"]
    assert warned.summary["steps"] == go_on["training.max_steps"]
    assert warned.said == warned.summary["alarms"]
    assert f"since step {steps} " in warned.said[0]


def test_a_checkpoint_that_cannot_be_written_costs_a_warning_but_for_the_last(tmp_path: Path) -> None:
    """A disk that takes nothing, from the third step to the fifth."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress: Progress) -> None:
        if progress.step in (2, 5):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if progress.step == 2 else soft, hard))

    job = local.job("moco", ["training.checkpoint_steps=2", "training.max_steps=8"])
    try:
        run = local.train(job, tmp_path, context=local.hooked(job, tmp_path, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.saved_steps == [2, 6, 8]
    (line,) = run.said
    assert line.startswith("checkpoint: step 4 cannot be saved: ")
    assert line.endswith("MB are free there; training goes on, the last checkpoint is from before")

    def fill_for_good(progress: Progress) -> None:
        if progress.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    context = local.hooked(job, tmp_path / "last", fill_for_good)
    try:
        with pytest.raises(
            UserError, match=r"checkpoint: step 8 cannot be saved: .*; the last checkpoint is from"
        ):
            local.train(job, tmp_path / "last", context=context)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert local.Run({}, context).saved_steps == [2, 4]
    assert len(list((tmp_path / "last" / "run").glob("*checkpoint_*"))) == 2, "nothing of the others is left"


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (["evaluation.every_epochs=1"], [0, 6, 12, 18]),
        (["evaluation.every_epochs=2"], [0, 12, 18]),
        (["evaluation.every_epochs=1", "training.max_steps=8"], [0, 6, 8]),
        (["evaluation.every_epochs=null"], []),
    ],
)
def test_evaluations_come_before_the_first_step_between_epochs_and_at_the_end(
    settings: list[str], steps: list[int], tmp_path: Path
) -> None:
    run = local.train(local.job("moco", ["training.epochs=3", *settings]), tmp_path)
    told = [message for message in run.messages if isinstance(message, dict)]
    assert told == run.summary["evaluations"]
    assert [e["step"] for e in told] == steps
    assert [e["epoch"] for e in told] == [round(step / STEPS_PER_EPOCH, 2) for step in steps]
    assert [e["step"] for e in told if "baseline/raw_pixels_knn_top1" in e] == steps[:1]


def test_an_evaluation_is_of_the_weights_at_its_step(tmp_path: Path) -> None:
    job = local.job("moco", ["evaluation.every_epochs=1", f"training.checkpoint_steps={STEPS_PER_EPOCH}"])
    run = local.train(job, tmp_path)
    settings = job.recipe.evaluation
    evaluate = OnlineEvaluation(
        job.dataset.train,
        job.dataset.val,
        size=job.recipe.views.build().eval_size,
        monitors=settings.monitors,
        k=settings.k,
        max_samples=settings.max_samples,
    )
    for evaluation, checkpoint in zip(run.summary["evaluations"][1:], run.checkpoints, strict=True):
        content = local.content(checkpoint)
        assert content["next_step"] == evaluation["step"]
        assert content["evaluations"][-1] == evaluation, "a checkpoint has what was known by then"
        expected = evaluate.run(local.algorithm_of(job, content))
        assert {name: evaluation[name] for name in expected} == pytest.approx(expected)
    assert len({e["embedding/std"] for e in run.summary["evaluations"]}) == 3


def test_an_evaluation_has_threads_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    run = OnlineEvaluation.run

    def watched(*args: Any, **kwargs: Any) -> dict[str, float]:
        threads.append(torch.get_num_threads())
        return run(*args, **kwargs)

    monkeypatch.setattr(OnlineEvaluation, "run", watched)
    job = replace(local.job("moco", ["evaluation.every_epochs=1"]), evaluation_threads=3)
    context = local.hooked(job, tmp_path, lambda _: threads.append(torch.get_num_threads()))
    local.train(job, tmp_path, context=context)
    epoch = [3, *[1] * STEPS_PER_EPOCH]
    assert threads == [*epoch, *epoch, 3], "training goes on with its own"


def test_evaluations_change_nothing_that_is_learned(tmp_path: Path) -> None:
    often = local.train(local.job("moco", ["evaluation.every_epochs=1"]), tmp_path / "often")
    never = local.train(local.job("moco"), tmp_path / "never")
    for part in ("algorithm", "optimizer"):
        local.assert_same(often.last[part], never.last[part])


def test_a_request_to_stop_ends_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "LOOK_S", 0.0)  # look after every step
    job = local.job("moco", ["evaluation.every_epochs=2"])
    context = local.hooked(job, tmp_path, lambda progress: setattr(context, "stopping", progress.step >= 6))
    run = local.train(job, tmp_path, context=context)
    assert run.summary["steps"] == 7
    assert run.saved_steps == [7]
    assert not run.summary["collapsed"]
    assert [e["step"] for e in run.summary["evaluations"]] == [0], "it does not wait for an evaluation"

    stopped = LocalContext(job.stream, context.folder)
    stopped.stopping = True
    nothing = local.train(job, tmp_path, context=stopped)
    assert nothing.summary["steps"] == 7, "before a first step there is nothing to save"
    assert stopped.messages == []

    ours = local.train(job, tmp_path)
    theirs = local.train(job, tmp_path / "whole")
    local.assert_same(ours.last, theirs.last)


def test_a_request_for_a_checkpoint_is_met_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "LOOK_S", 0.0)
    job = local.job("moco")

    def ask(progress: Progress) -> None:
        if progress.step == 4:
            context.checkpoint_wanted = True

    context = local.hooked(job, tmp_path, ask)
    assert local.train(job, tmp_path, context=context).saved_steps == [5, STEPS]
    assert not context.checkpoint_wanted


class Leaving(LocalContext):
    """A worker whose node is about to be taken away: told once, at the second look."""

    looks = 0

    def preemption_notice(self) -> str | None:  # type: ignore[override]
        self.looks += 1
        return "the node is taken away soon" if self.looks == 2 else None


def test_a_node_s_notice_is_worth_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "LOOK_S", 0.0)
    job = local.job("moco")
    context = Leaving(job.stream, RunFolder.at(str(tmp_path), "run"))
    run = local.train(job, tmp_path, context=context)
    assert run.saved_steps == [2, STEPS]
    assert run.said == ["the node is taken away soon"]


def test_checkpoints_come_after_steps_and_after_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = local.train(local.job("moco", ["training.checkpoint_steps=5"]), tmp_path / "steps")
    assert run.saved_steps == [5, 10, STEPS]
    monkeypatch.setattr(lookout, "LOOK_S", 0.0)
    # Less than a step takes.
    run = local.train(local.job("moco", ["training.checkpoint_minutes=1e-6"]), tmp_path / "minutes")
    assert run.saved_steps == list(range(1, STEPS + 1))
    at = Lookout(run.context, first_step=0, minutes=1000.0)
    assert [at(step) for step in range(1, 4)] == [(False, False)] * 3


def test_micro_batches_are_the_recipe_s(tmp_path: Path) -> None:
    """MAE has no batch norm; SGD does not enlarge what rounding leaves."""
    plain = [
        "optimization.optimizer=SGD(momentum=0.9)",
        "optimization.base_lr=0.01",
        "training.max_steps=4",
    ]

    class Counts(LocalContext):
        rows: list[int] = []

        def wrap(self, algorithm: nn.Module) -> nn.Module:
            self.rows = []
            algorithm.register_forward_pre_hook(lambda _, arguments: self.rows.append(len(arguments[0][0])))
            return super().wrap(algorithm)

    losses = {}
    for name, settings, rows in (
        ("whole", [], [32]),
        ("halves", ["training.accumulate=2"], [16, 16]),
        ("small memory", ["training.max_rows=8"], [8, 8, 8, 8]),
    ):
        job = local.job("mae", [*plain, *settings])
        context = Counts(job.stream, RunFolder.at(str(tmp_path / name), "run"))
        run = local.train(job, tmp_path, context=context)
        assert context.rows == 4 * rows
        losses[name] = [reading.loss for reading in readings(run)]
    assert len(losses["whole"]) == 4
    for name, values in losses.items():
        assert values == pytest.approx(losses["whole"], rel=1e-4), name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Digits as files, of which two are empty."""
    for i, (image, label) in enumerate(zip(load_digits().images[:80], load_digits().target, strict=False)):
        path = tmp_path / "images" / str(label) / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(image.astype(np.uint8) * 16, (20, 20)))
        if i in (5, 50):
            path.write_bytes(b"")
    return tmp_path / "images"


def test_broken_images_are_named_once_replaced_and_counted(folder: Path, tmp_path: Path) -> None:
    whole = open_dataset(str(folder))
    images = Dataset(whole.train, None)
    allowed = ["training.epochs=3", "data.max_broken=0.1"]
    run = local.train(local.job("moco", allowed, dataset=images), tmp_path)
    named = [message for message in run.messages if isinstance(message, Broken)]
    assert len({b.path for b in named}) == len(named) == run.context.broken_images() > 0
    assert all(Path(b.path).stat().st_size == 0 for b in named)
    assert all(math.isfinite(reading.loss) for reading in readings(run))

    job = local.job("moco", ["training.epochs=3", "data.max_broken=0"], dataset=images)
    with pytest.raises(UserError, match=r"^data\.max_broken: \d of \d+ images are unreadable, more than"):
        local.train(job, tmp_path / "strict")


def test_nothing_is_at_work_after_a_run(tmp_path: Path) -> None:
    import threading
    import time

    before = set(threading.enumerate())
    job = local.job("moco", ["training.max_steps=3"])
    local.train(job, tmp_path / "finished")
    for method in ("before_step", "before_epoch"):
        with pytest.raises(local.Killed):
            local.train(job, tmp_path, context=local.hooked(job, tmp_path, _die, method))
    deadline = time.monotonic() + 10
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _die(progress: Progress) -> None:
    raise local.Killed
