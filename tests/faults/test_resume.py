"""Killed at an awkward moment and resumed, a run ends as if nothing had happened: state beside the weights included.

MoCo is in `test_kill`. Here are the algorithms with banks, labels, centroids, prototypes and a late queue. A file of
the user's, with subclasses of them, says when the moment has come, and waits there for the end.
"""

import json
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.runs import checkpoints, run, start, state, summary, wait_for

pytestmark = pytest.mark.cluster

STEPS_PER_EPOCH = 1297 // 64
STEPS = 2 * STEPS_PER_EPOCH
EVERY = 9  # a checkpoint after so many steps

WAITING = """
import json
import time
from dataclasses import replace
from pathlib import Path

from ssl_ray.experiments import load
from ssl_ray.models import NPID, ODC, DeepCluster, SwAV
from ssl_ray.models.preprocessing import DataPreprocessor
from ssl_ray.spec import Spec

HERE = Path(__file__).parent


def wait_if_asked(moment, progress):
    asked = HERE / "moment.json"
    if asked.exists() and json.loads(asked.read_text()) == [moment, progress.step]:
        (HERE / "now").touch()
        time.sleep(600)


class Waits:
    def before_epoch(self, progress, extract):
        def extract_and_wait(function):
            found = extract(function)
            wait_if_asked("clustering", progress)
            return found

        return super().before_epoch(progress, extract_and_wait)

    def before_step(self, progress):
        super().before_step(progress)
        wait_if_asked("step", progress)


class WaitingSwAV(Waits, SwAV):
    pass


class Double(DataPreprocessor):
    def forward(self, views):
        return [view.double() for view in super().forward(views)]


class WaitingSwAVInDouble(WaitingSwAV):
    def __init__(self, *modules, queue_size, **rest):
        super().__init__(*modules, queue_size=queue_size, data_preprocessor=Double(), **rest)
        self.double()


class WaitingNPID(Waits, NPID):
    pass


class WaitingODC(Waits, ODC):
    pass


class WaitingDeepCluster(Waits, DeepCluster):
    pass


def small(name, algorithm):
    recipe = load(name).SMALL
    return replace(recipe, algorithm=Spec(algorithm, **recipe.algorithm.kwargs))


SWAV = small("swav", WaitingSwAV)
SWAV_IN_DOUBLE = small("swav", WaitingSwAVInDouble)
NPID_ = small("npid", WaitingNPID)
ODC_ = small("odc", WaitingODC)
DEEPCLUSTER = small("deepcluster", WaitingDeepCluster)
"""


@dataclass(frozen=True)
class Case:
    """A recipe of WAITING, settings that keep it small, and when it is killed: in which step, doing what."""

    recipe: str
    settings: tuple[str, ...]
    moment: str
    step: int


CASES = {
    "swav, in mid-epoch, its queue in use": Case(
        "SWAV",
        ("views.small_size=12", "algorithm.queue_size=128", "algorithm.neck.in_channels=64"),
        "step",
        STEPS_PER_EPOCH + 10,
    ),
    "npid, an epoch over and no checkpoint since": Case(
        "NPID_", ("algorithm.num_negatives=256", "algorithm.neck.in_channels=64"), "step", STEPS_PER_EPOCH + 1
    ),
    "odc, in mid-epoch, labels and centroids moved": Case(
        "ODC_",
        (
            "algorithm.neck.in_channels=64",
            "algorithm.head.num_classes=10",
            "algorithm.memory.num_clusters=10",
        ),
        "step",
        STEPS_PER_EPOCH + 13,
    ),
    "deepcluster, clustering": Case(
        "DEEPCLUSTER",
        ("algorithm.interval=1", "algorithm.head.in_channels=64", "algorithm.head.num_classes=10"),
        "clustering",
        STEPS_PER_EPOCH,
    ),
}
COMMON = [
    "--data=digits",
    "--set=algorithm.backbone.width=8",
    "--set=views.size=16",
    "--set=evaluation.every_epochs=null",
    "--set=training.checkpoint_minutes=null",
    f"--set=training.checkpoint_steps={EVERY}",
    "--epochs=2",
    "--json",
]
UNDISTURBED: dict[str, dict[str, Tensor]] = {}


def arguments(case: Case, address: str) -> list[str]:
    return [
        "pretrain",
        f"waiting.py:{case.recipe}",
        *COMMON,
        *(f"--set={setting}" for setting in case.settings),
        f"--address={address}",
    ]


def undisturbed(case: Case, folder: Path, address: str) -> dict[str, Tensor]:
    """The final state of a run on one worker that nobody kills; trained once for all tests."""
    if case.recipe not in UNDISTURBED:
        done = summary(run(folder, *arguments(case, address), "--name=undisturbed"))
        assert done["steps"] == STEPS
        UNDISTURBED[case.recipe] = state(done["checkpoint"])
    return UNDISTURBED[case.recipe]


def killed_and_resumed(
    case: Case, folder: Path, address: str, *, workers: int = 1, then: int = 1
) -> dict[str, Tensor]:
    """The final state of a run whose driver is killed at the case's moment and which is resumed on `then` workers."""
    (folder / "moment.json").write_text(json.dumps([case.moment, case.step]))
    process = start(folder, *arguments(case, address), f"--workers={workers}", "--name=killed")
    try:
        wait_for((folder / "now").exists, f"{case.moment} at step {case.step}", process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (folder / "moment.json").unlink()
    kept = folder / "runs" / "killed"
    at = torch.load(kept / checkpoints(kept)[-1] / "checkpoint.pt", weights_only=True)["next_step"]
    assert at == case.step // EVERY * EVERY
    assert at < case.step, "something has to be done again"
    there = [f"--address={address}", f"--workers={then}", "--json"]
    resumed = summary(run(folder, "pretrain", "--resume=killed", *there))
    assert resumed["steps"] == STEPS
    return state(resumed["checkpoint"])


@pytest.mark.parametrize("name", CASES)
def test_resumed_it_equals_a_run_that_nobody_killed(name: str, tmp_path: Path, two_cpus: str) -> None:
    case = CASES[name]
    (tmp_path / "waiting.py").write_text(WAITING)
    theirs = undisturbed(case, tmp_path, two_cpus)
    ours = killed_and_resumed(case, tmp_path, two_cpus)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


def test_two_workers_before_the_kill_and_one_after_it(tmp_path: Path, two_cpus: str) -> None:
    # In double precision. In single, AdamW makes whole steps of what rounding leaves of a gradient that is zero: two
    # runs on one worker, 1e-7 apart in the first layer's weights, are 24 % apart in a bias after these steps.
    case = replace(CASES["swav, in mid-epoch, its queue in use"], recipe="SWAV_IN_DOUBLE")
    (tmp_path / "waiting.py").write_text(WAITING)
    theirs = undisturbed(case, tmp_path, two_cpus)
    ours = killed_and_resumed(case, tmp_path, two_cpus, workers=2)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        # Only the order of sums differs, for 27 steps.
        distance = (ours[key].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1e-12)
        assert distance < 1e-9, f"{key}: {distance:.2g}"
