"""Kill a data task, a node, the head: the run goes on from its last checkpoint, or is continued, to equal weights."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.photos import encode, photo
from tests.nodes.cluster import ENV, Nodes, four_nodes
from tests.runs import TINY, checkpoints, run, start, state, summary, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.long]

IMAGES, EPOCHS = 128, 60
STEPS = EPOCHS * (IMAGES // 32)
ARGUMENTS = [
    *("pretrain", "moco", *TINY[1:], f"--epochs={EPOCHS}", "--workers=2", "--cpus-per-worker=1"),
    *("--set=training.checkpoint_steps=20", "--set=evaluation.every_epochs=null"),
]
# From the head's end to the driver's.
HEAD_LOST_S = 60


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = four_nodes()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images that take the data tasks a while."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(IMAGES):
        (folder / f"{i:03}.png").write_bytes(encode(photo()[: 300 + i], "PNG"))
    return f"--data={folder}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, nodes: Nodes, photos: str) -> dict[str, Any]:
    here = tmp_path_factory.mktemp("undisturbed")
    return summary(run(here, *ARGUMENTS, photos, "--json", f"--address={nodes.address}", env=ENV))


def same_weights(checkpoint: str | Path, undisturbed: dict[str, Any]) -> bool:
    ours, theirs = state(checkpoint), state(undisturbed["checkpoint"])
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def step_of(folder: Path) -> int:
    step: int = torch.load(folder / checkpoints(folder)[-1] / "checkpoint.pt", weights_only=True)["next_step"]
    return step


def kill_data_task(nodes: Nodes, process: "subprocess.Popen[str]", timeout: float = 60) -> None:
    """SIGKILL to the process of a data task, while it works."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before a data task was seen"
        for name in ("data", "first", "second"):
            for worker, does in nodes.workers(name):
                if "_MakeBlocks" in does:
                    worker.send_signal(signal.SIGKILL)
                    return
    raise AssertionError(f"no data task within {timeout} s")


def test_a_data_task_and_then_a_node_are_killed(
    tmp_path: Path, nodes: Nodes, photos: str, undisturbed: dict[str, Any]
) -> None:
    process = start(tmp_path, *ARGUMENTS, photos, "--name=run", f"--address={nodes.address}", env=ENV)
    folder = tmp_path / "runs" / "run"
    try:
        kill_data_task(nodes, process)  # they begin before the workers do, and are soon ahead of them by all
        wait_for(lambda: checkpoints(folder), "checkpoint after a data task was killed", process)
        (node,) = (
            name
            for name in ("first", "second")
            if any("RayTrainWorker" in does for _, does in nodes.workers(name))
        )
        before = len(checkpoints(folder))
        nodes.kill(node)
        killed = time.monotonic()
        wait_for(lambda: len(checkpoints(folder)) > before, "checkpoint after a node was lost", process)
        print(f"a checkpoint {time.monotonic() - killed:.0f} s after the node was lost")
        assert process.wait(timeout=120) == 0, (tmp_path / "err.txt").read_text()
    finally:
        process.kill()
    assert step_of(folder) == STEPS
    assert same_weights(folder / checkpoints(folder)[-1], undisturbed)
    err = (tmp_path / "err.txt").read_text()
    print(err)
    assert "Traceback" not in err
    nodes.add(node, 2)


def test_the_head_is_lost_and_the_run_is_continued_elsewhere(
    tmp_path: Path, nodes: Nodes, photos: str, undisturbed: dict[str, Any]
) -> None:
    lost = four_nodes()
    impatient = {"RAY_gcs_rpc_server_reconnect_timeout_s": "20"}  # half of it ours
    process = start(
        tmp_path, *ARGUMENTS, photos, "--name=run", f"--address={lost.address}", env=ENV | impatient
    )
    folder = tmp_path / "runs" / "run"
    err = tmp_path / "err.txt"
    try:
        wait_for(lambda: checkpoints(folder), "first checkpoint", process)
        lost.kill("head")
        killed = time.monotonic()
        code = process.wait(timeout=HEAD_LOST_S)
        print(f"the driver ended with {code} {time.monotonic() - killed:.0f} s after the head was lost")
    finally:
        process.kill()
        print(err.read_text())
        lost.close()
    assert code == 2
    *before, line = err.read_text().splitlines()
    assert all(said.startswith("moco: step ") for said in before if said), "progress and nothing else"
    assert line.startswith("ssl-ray: the cluster's head at ")
    assert line.endswith(
        f" is gone; all up to the last checkpoint is kept in {folder}: continue with --resume"
    )
    assert 0 < step_of(folder) < STEPS

    resumed = summary(
        run(tmp_path, "pretrain", "--resume=run", "--json", f"--address={nodes.address}", env=ENV)
    )
    assert resumed["steps"] == STEPS
    assert same_weights(resumed["checkpoint"], undisturbed)
