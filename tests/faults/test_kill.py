"""Kill the driver or a worker: the run goes on from its last checkpoint as if nothing had happened."""

import signal
import sqlite3
import subprocess
from pathlib import Path

import psutil
import pytest
import torch

from tests.runs import TINY, checkpoints, run, start, state, summary, wait_for

pytestmark = pytest.mark.slow

ARGUMENTS = ["pretrain", "moco", *TINY, "--epochs=2", "--set=training.checkpoint_steps=7", "--json"]
STEPS_PER_EPOCH = 1297 // 32
STEPS = 2 * STEPS_PER_EPOCH


def test_killed_in_mid_epoch_and_resumed_equals_never_interrupted(tmp_path: Path, two_cpus: str) -> None:
    there = f"--address={two_cpus}"
    undisturbed = summary(run(tmp_path, *ARGUMENTS, "--name=undisturbed", there))
    assert undisturbed["steps"] == STEPS

    process = start(tmp_path, *ARGUMENTS, "--name=killed", there)
    folder = tmp_path / "runs" / "killed"
    wait_for(lambda: len(checkpoints(folder)) >= 2, "second checkpoint", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(folder / checkpoints(folder)[-1] / "checkpoint.pt", weights_only=True)["next_step"]
    assert 0 < step < STEPS
    assert step % STEPS_PER_EPOCH != 0, "killed in mid-epoch"

    resumed = summary(run(tmp_path, "pretrain", "--resume=killed", "--json", there))
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


def test_a_killed_worker_is_restarted_and_the_run_ends(
    tmp_path: Path, two_cpus: str, two_cpus_process: "subprocess.Popen[str]"
) -> None:
    process = start(tmp_path, *ARGUMENTS, "--workers=2", "--name=two", f"--address={two_cpus}")
    folder = tmp_path / "runs" / "two"
    wait_for(lambda: checkpoints(folder), "first checkpoint", process)
    workers = [
        child
        for child in psutil.Process(two_cpus_process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    assert process.wait(timeout=240) == 0, (tmp_path / "err.txt").read_text()
    final = torch.load(folder / checkpoints(folder)[-1] / "checkpoint.pt", weights_only=True)
    assert final["next_step"] == STEPS
