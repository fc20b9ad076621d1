"""Kill the driver or a worker: the run goes on from its last checkpoint as if nothing had happened."""

import shutil
import signal
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.conftest import ClusterProcess
from tests.runs import TINY, checkpoints, run, start, state, summary, wait_for

pytestmark = pytest.mark.process

ARGUMENTS = ["pretrain", "moco", *TINY, "--epochs=2", "--set=training.checkpoint_steps=7", "--json"]
STEPS_PER_EPOCH = 1297 // 32
STEPS = 2 * STEPS_PER_EPOCH


@dataclass
class Killed:
    """An undisturbed run's summary, and the working directory in which the same run was killed in mid-epoch."""

    undisturbed: dict[str, Any]
    cwd: Path
    step: int

    def equals(self, resumed: dict[str, Any]) -> None:
        assert resumed["steps"] == STEPS
        ours, theirs = state(resumed["checkpoint"]), state(self.undisturbed["checkpoint"])
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name
        assert resumed["evaluations"] == self.undisturbed["evaluations"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, two_cpus: str) -> Killed:
    there, cwd = f"--address={two_cpus}", tmp_path_factory.mktemp("killed")
    undisturbed = summary(run(cwd, *ARGUMENTS, "--name=undisturbed", there))
    assert undisturbed["steps"] == STEPS
    process = start(cwd, *ARGUMENTS, "--name=killed", there)
    folder = cwd / "runs" / "killed"
    wait_for(lambda: len(checkpoints(folder)) >= 2, "second checkpoint", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(folder / checkpoints(folder)[-1] / "checkpoint.pt", weights_only=True)["next_step"]
    assert 0 < step < STEPS
    assert step % STEPS_PER_EPOCH != 0, "killed in mid-epoch"
    return Killed(undisturbed, cwd, step)


def test_half_a_checkpoint_is_passed_over_and_half_a_list_made_anew(
    killed: Killed, tmp_path: Path, two_cpus: str
) -> None:
    shutil.copytree(killed.cwd / "runs" / "killed", tmp_path / "killed")
    folder = tmp_path / "killed"
    before, newest = checkpoints(folder)[-2:]
    for half in (folder / newest / "checkpoint.pt", folder / "checkpoint_manager_snapshot.json"):
        half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{killed.cwd}/mlflow.db"}
    done = run(tmp_path, "pretrain", f"--resume={folder}", "--json", f"--address={two_cpus}", env=env)
    killed.equals(summary(done))
    earlier = int(before.split("_")[1])
    assert "its list of checkpoints was cut off; made anew from the " in done.stderr
    assert f"{newest}/checkpoint.pt cannot be read: " in done.stderr
    assert f"; going on from the one before, of step {earlier}" in done.stderr
    assert "Traceback" not in done.stderr


def test_killed_in_mid_epoch_and_resumed_equals_never_interrupted(killed: Killed, two_cpus: str) -> None:
    resumed = summary(run(killed.cwd, "pretrain", "--resume=killed", "--json", f"--address={two_cpus}"))
    killed.equals(resumed)

    with sqlite3.connect(killed.cwd / "mlflow.db") as store:
        runs = store.execute("select name, status from runs order by start_time").fetchall()
        assert runs == [("undisturbed", "FINISHED"), ("killed", "FINISHED")], (
            "one MLflow run for one training run"
        )
        last = store.execute(
            "select max(step) from metrics where run_uuid = ? and key = 'train/loss'",
            (resumed["mlflow_run_id"],),
        ).fetchone()
        assert last == (STEPS,)


def test_a_killed_worker_is_restarted_and_the_run_ends(
    tmp_path: Path, two_cpus: str, two_cpus_process: ClusterProcess
) -> None:
    process = start(tmp_path, *ARGUMENTS, "--workers=2", "--name=two", f"--address={two_cpus}")
    folder = tmp_path / "runs" / "two"
    wait_for(lambda: checkpoints(folder), "first checkpoint", process)
    workers = [
        child
        for child in psutil.Process(two_cpus_process.process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    assert process.wait(timeout=240) == 0, (tmp_path / "err.txt").read_text()
    final = torch.load(folder / checkpoints(folder)[-1] / "checkpoint.pt", weights_only=True)
    assert final["next_step"] == STEPS
