"""A node that is about to be taken away (a spot node, a pod that is deleted): its notice is enough for a checkpoint."""

import contextlib
import signal
from pathlib import Path

import pytest
import torch

from tests.nodes.cluster import ENV, Nodes
from tests.runs import TINY, checkpoints, run, start, state, wait_for

pytestmark = pytest.mark.slow

# No checkpoint is due before the end: only the notice makes one.
ARGUMENTS = [*TINY, "--epochs=8", "--workers=1", "--cpus-per-worker=2", "--set=evaluation.every_epochs=null"]
GRACE = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "12", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}


def test_a_notice_makes_a_checkpoint_from_which_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in GRACE.items():
        monkeypatch.setenv(name, value)
    env = ENV | GRACE
    err = tmp_path / "err.txt"
    with contextlib.closing(Nodes()) as cluster:
        cluster.add("head", 1)  # driver and data; the worker takes both CPUs of the other node
        spot = cluster.add_elsewhere(2)
        there = ["pretrain", "moco", *ARGUMENTS, f"--address={cluster.address}"]
        still = run(tmp_path, *there, "--name=still", env=env)
        assert still.returncode == 0, still.stderr

        process = start(tmp_path, *there, "--name=spot", env=env)
        folder = tmp_path / "runs" / "spot"
        wait_for(lambda: "step 10/" in err.read_text(), "step", process)
        spot.send_signal(signal.SIGTERM)
        wait_for(lambda: checkpoints(folder), "checkpoint", process, timeout=12)
        assert spot.poll() is None, "within the notice"
        saved = torch.load(folder / checkpoints(folder)[0] / "checkpoint.pt", weights_only=True)["next_step"]
        wait_for(lambda: spot.poll() is not None, "end of the node", process)
        cluster.add_elsewhere(2)
        assert process.wait(timeout=180) == 0, err.read_text()

    said = err.read_text()
    assert "Traceback" not in said
    assert "the node of worker 0 is taken away in " in said
    assert f"training goes on from step {saved} on 1 worker" in said
    ours, theirs = (
        state(folder / checkpoints(folder)[-1])
        for folder in (tmp_path / "runs" / "spot", tmp_path / "runs" / "still")
    )
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
