"""Kill the driver or a worker: the run goes on from its last checkpoint as if nothing had happened."""

import signal
import sqlite3
from pathlib import Path

import psutil
import pytest
import torch

from tests.runs import TINY, checkpoints, run, start, state, summary, wait_for

pytestmark = pytest.mark.slow

ARGUMENTS = ["pretrain", "moco", *TINY, "--epochs=3", "--set=training.checkpoint_steps=7", "--json"]
STEPS = 3 * (1297 // 32)


def test_killed_in_mid_epoch_and_resumed_equals_never_interrupted(tmp_path: Path) -> None:
    undisturbed = summary(run(tmp_path, *ARGUMENTS, "--name=undisturbed"))
    assert undisturbed["steps"] == STEPS

    process = start(tmp_path, *ARGUMENTS, "--name=killed")
    folder = tmp_path / "runs" / "killed"
    wait_for(lambda: len(checkpoints(folder)) >= 2, "second checkpoint", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(folder / checkpoints(folder)[-1] / "checkpoint.pt", weights_only=True)["next_step"]
    assert 0 < step < STEPS
    assert step % (1297 // 32) != 0, "killed in mid-epoch"

    resumed = summary(run(tmp_path, "pretrain", "--resume=killed", "--json"))
    assert resumed["steps"] == STEPS
    ours, theirs = state(resumed["checkpoint"]), state(undisturbed["checkpoint"])
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert resumed["evaluations"] == undisturbed["evaluations"]

    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        runs = store.execute("select name, status from runs order by start_time").fetchall()
        assert runs == [("undisturbed", "FINISHED"), ("killed", "FINISHED")], (
            "one MLflow run for one training run"
        )
        last = store.execute(
            "select max(step) from metrics where run_uuid = ? and key = 'train/loss'",
            (resumed["mlflow_run_id"],),
        ).fetchone()
        assert last == (STEPS,)


def test_a_killed_worker_is_restarted_and_the_run_ends(tmp_path: Path) -> None:
    process = start(tmp_path, *ARGUMENTS, "--workers=2", "--name=two")
    folder = tmp_path / "runs" / "two"
    wait_for(lambda: checkpoints(folder), "first checkpoint", process)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    assert process.wait(timeout=240) == 0, (tmp_path / "err.txt").read_text()
    final = torch.load(folder / checkpoints(folder)[-1] / "checkpoint.pt", weights_only=True)
    assert final["next_step"] == STEPS
