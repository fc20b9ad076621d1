"""Interrupted anywhere and continued, a run ends as if nothing had happened: to the last bit, memories included."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from ssl_ray.errors import UserError
from ssl_ray.models import Progress
from ssl_ray.training.context import LocalContext
from ssl_ray.training.events import Begun
from ssl_ray.training.folder import RunFolder
from tests.training import local
from tests.training.local import STEPS, STEPS_PER_EPOCH, Killed

EVERY = ["training.checkpoint_steps=4"]


def killed(experiment: str, folder: Path, method: str, step: int, settings: list[str]) -> None:
    """A run that gets as far as `method` in step `step`, counted from 0."""

    def die(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    job = local.job(experiment, settings)
    with pytest.raises(Killed):
        local.train(job, folder, context=local.hooked(job, folder, die, method))


@dataclass(frozen=True)
class Case:
    """What is trained, and where it ends: in which step, after which method."""

    experiment: str
    method: str
    step: int
    settings: tuple[str, ...] = ()


CASES = {
    "moco, in its second epoch, evaluated": Case(
        "moco", "before_step", STEPS_PER_EPOCH + 4, ("evaluation.every_epochs=1",)
    ),
    "swav, its queue in use": Case(
        "swav", "after_step", STEPS_PER_EPOCH + 3, ("algorithm.queue_start_epoch=0",)
    ),
    "npid, its bank written": Case("npid", "after_step", STEPS_PER_EPOCH + 1),
    "odc, labels and centroids moved": Case("odc", "after_step", STEPS_PER_EPOCH + 4),
    "deepcluster, in mid-epoch": Case("deepcluster", "before_step", STEPS_PER_EPOCH + 4),
    "deepcluster, clusters made and not yet used": Case("deepcluster", "before_epoch", STEPS_PER_EPOCH),
}


@pytest.mark.parametrize("name", CASES)
def test_continued_it_equals_a_run_that_nobody_interrupted(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    settings = [*EVERY, *case.settings]
    theirs = local.train(local.job(case.experiment, settings), tmp_path / "undisturbed")
    killed(case.experiment, tmp_path / "killed", case.method, case.step, settings)
    ours = local.train(local.job(case.experiment, settings), tmp_path / "killed")
    (begun,) = [message for message in ours.messages if isinstance(message, Begun)]
    assert begun.step == case.step // 4 * 4, "from the last checkpoint"
    assert ours.summary["steps"] == theirs.summary["steps"] == STEPS
    local.assert_same(ours.last, theirs.last)
    assert ours.summary["evaluations"] == theirs.summary["evaluations"]


def test_a_run_in_two_parts_is_one(tmp_path: Path) -> None:
    """`--steps` ends it, schedules unchanged; more of them later go on."""
    whole = local.train(local.job("moco"), tmp_path / "whole")
    local.train(local.job("moco", ["training.max_steps=5"]), tmp_path / "parts")
    parts = local.train(local.job("moco"), tmp_path / "parts")
    local.assert_same(parts.last, whole.last)
    again = local.train(local.job("moco"), tmp_path / "parts")
    assert again.summary["steps"] == STEPS
    assert again.saved_steps == [5, STEPS], "there was nothing left to do"


def test_another_run_s_checkpoint_is_a_place_to_begin(tmp_path: Path) -> None:
    first = local.train(local.job("moco", ["training.max_steps=5"]), tmp_path / "first")
    (path,) = first.checkpoints
    taken = local.train(local.job("moco", init_from=str(path)), tmp_path / "second")
    whole = local.train(local.job("moco"), tmp_path / "whole")
    local.assert_same(taken.last, whole.last)
    begun = [message.step for message in taken.messages if isinstance(message, Begun)]
    assert begun == [5]
    again = local.train(local.job("moco", init_from=str(path)), tmp_path / "second")
    assert [m.step for m in again.messages if isinstance(m, Begun)] == [STEPS], "its own come first"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_half_a_checkpoint_is_passed_over_with_a_word(tmp_path: Path) -> None:
    settings = [*EVERY, "training.max_steps=8"]
    _, newest = local.train(local.job("moco", settings), tmp_path / "half").checkpoints
    cut(newest / "checkpoint.pt")
    ours = local.train(local.job("moco", EVERY), tmp_path / "half")
    (line,) = ours.said
    assert line.startswith(f"checkpoint: {newest}/checkpoint.pt cannot be read: ")
    assert line.endswith("; going on from the one before, of step 4")
    theirs = local.train(local.job("moco", EVERY), tmp_path / "whole")
    local.assert_same(ours.last, theirs.last)


def test_without_a_whole_checkpoint_it_does_not_begin_anew(tmp_path: Path) -> None:
    run = local.train(local.job("moco", [*EVERY, "training.max_steps=8"]), tmp_path)
    assert run.saved_steps == [4, 8]
    for path in run.checkpoints:
        cut(path / "checkpoint.pt")
    with pytest.raises(UserError, match="no earlier checkpoint is kept: begin again under another --name"):
        local.train(local.job("moco"), tmp_path)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    run = local.train(local.job("moco", ["training.checkpoint_steps=2"]), tmp_path, keep=2)
    assert run.saved_steps == [10, 12]
    assert len(list((tmp_path / "run").glob("checkpoint_*"))) == 2


def test_an_object_store_is_as_good_as_a_disk(tmp_path: Path, s3: tuple[Any, str]) -> None:
    client, query = s3
    folder = RunFolder.at(f"s3://pictures/runs?{query}", "run")
    for settings in (["training.max_steps=5"], ["training.checkpoint_steps=8"]):
        job = local.job("moco", settings)
        run = local.train(job, tmp_path, context=LocalContext(job.stream, folder, keep=1))
    begun = [message.step for message in run.messages if isinstance(message, Begun)]
    assert begun == [5]
    (kept,) = run.context.checkpoints(None)
    whole = local.train(local.job("moco"), tmp_path / "whole")
    with kept.as_directory() as directory:
        local.assert_same(local.content(Path(directory)), whole.last)
    found = client.get_file_info(fs.FileSelector("pictures/runs/run", recursive=True))
    assert len([file for file in found if file.base_name == "checkpoint.pt"]) == 1, "the older are deleted"
