"""Kill the driver or a worker: the run goes on from its last checkpoint as if nothing had happened."""

import signal
import sqlite3
from pathlib import Path

import psutil
import pytest
import torch

from tests.conftest import ClusterProcess
from tests.runs import TINY, checkpoints, run, start, state, summary, wait_for
from tests.training import local

pytestmark = pytest.mark.process

ARGUMENTS = ["moco", *TINY, "--epochs=2", "--set=training.checkpoint_steps=7", "--json"]
STEPS_PER_EPOCH = 1297 // 32
STEPS = 2 * STEPS_PER_EPOCH


def test_killed_while_it_wrote_and_resumed_equals_never_interrupted(tmp_path: Path, two_cpus: str) -> None:
    """In mid-epoch; its newest checkpoint and Ray Train's list of them are cut. The other runs in this process."""
    process = start(tmp_path, "pretrain", *ARGUMENTS, "--name=killed", f"--address={two_cpus}")
    folder = tmp_path / "runs" / "killed"
    wait_for(lambda: len(checkpoints(folder)) >= 2, "second checkpoint", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before, newest = checkpoints(folder)[-2:]
    step = torch.load(folder / newest / "checkpoint.pt", weights_only=True)["next_step"]
    assert 0 < step < STEPS
    assert step % STEPS_PER_EPOCH != 0, "killed in mid-epoch"
    for half in (folder / newest / "checkpoint.pt", folder / "checkpoint_manager_snapshot.json"):
        half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])

    undisturbed = local.train(local.job_of(*ARGUMENTS), tmp_path / "undisturbed")
    done = run(tmp_path, "pretrain", "--resume=killed", "--json", f"--address={two_cpus}")
    resumed = summary(done)
    assert "its list of checkpoints was cut off; made anew from the " in done.stderr
    assert f"{newest}/checkpoint.pt cannot be read: " in done.stderr
    assert f"; going on from the one before, of step {int(before.split('_')[1])}" in done.stderr
    assert "Traceback" not in done.stderr
    assert resumed["steps"] == STEPS
    local.assert_same(state(resumed["checkpoint"]), undisturbed.last["algorithm"])
    assert resumed["evaluations"] == undisturbed.summary["evaluations"]

    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        runs = store.execute("select name, status from runs").fetchall()
        assert runs == [("killed", "FINISHED")], "one MLflow run for one training run"
        last = store.execute("select max(step) from metrics where key = 'train/loss'").fetchone()
        assert last == (STEPS,)


def test_a_killed_worker_is_restarted_and_the_run_ends(
    tmp_path: Path, two_cpus: str, two_cpus_process: ClusterProcess
) -> None:
    process = start(tmp_path, "pretrain", *ARGUMENTS, "--workers=2", "--name=two", f"--address={two_cpus}")
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
