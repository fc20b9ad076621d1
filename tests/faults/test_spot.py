"""A node that is about to be taken away (a spot node, a pod that is deleted): its notice is enough for a checkpoint."""

import shutil
import signal
import socket
import tempfile
from pathlib import Path

import pytest
import torch

from tests.pods import clean, free_port, pod
from tests.runs import TINY, checkpoints, run, start, state, wait_for

pytestmark = pytest.mark.cluster

# No checkpoint is due before the end: only the notice makes one.
ARGUMENTS = [*TINY, "--epochs=12", "--workers=1", "--cpus-per-worker=2", "--set=evaluation.every_epochs=null"]
ENV = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "10",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}


def test_a_notice_makes_a_checkpoint_from_which_the_run_goes_on(tmp_path: Path) -> None:
    err, env = tmp_path / "err.txt", clean(tmp_path) | ENV
    short = tempfile.mkdtemp(prefix="r", dir="/tmp")  # the paths of sockets have to be short
    address = f"{socket.gethostbyname(socket.gethostname())}:{free_port()}"
    head = ["--head", f"--port={address.partition(':')[2]}", "--num-cpus=1", f"--temp-dir={short}"]
    head += ["--include-dashboard=false", f"--ray-client-server-port={free_port()}"]
    node = [f"--address={address}", "--num-cpus=2"]
    # The head has a CPU for the data; the worker takes both of the other node.
    with pod(tmp_path / "head.txt", env, *head):
        there = ["pretrain", "moco", *ARGUMENTS, f"--address={address}"]
        with pod(tmp_path / "spot.txt", env, *node) as spot:
            still = run(tmp_path, *there, "--name=still", env=ENV)
            assert still.returncode == 0, still.stderr

            process = start(tmp_path, *there, "--name=spot", env=ENV)
            folder = tmp_path / "runs" / "spot"
            wait_for(lambda: "moco: step " in err.read_text(), "first reading", process)
            spot.send_signal(signal.SIGTERM)
            wait_for(lambda: checkpoints(folder), "checkpoint", process, timeout=10)
            assert spot.poll() is None, "within the notice"
            saved = torch.load(folder / checkpoints(folder)[0] / "checkpoint.pt", weights_only=True)
            wait_for(lambda: spot.poll() is not None, "end of the node", process)
        with pod(tmp_path / "other.txt", env, *node):
            assert process.wait(timeout=180) == 0, err.read_text()
    shutil.rmtree(short, ignore_errors=True)

    said = err.read_text()
    assert "Traceback" not in said
    assert "the node of worker 0 is taken away in " in said
    assert f"training goes on from step {saved['next_step']} on 1 worker" in said
    ours, theirs = (
        state(folder / checkpoints(folder)[-1])
        for folder in (tmp_path / "runs" / "spot", tmp_path / "runs" / "still")
    )
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
