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

pytestmark = pytest.mark.cluster

# Views are made more slowly than they are used: there is always a data task at work.
SLOW = """
import time
from dataclasses import replace

from ssl_ray.data.pipeline import ViewPipeline
from ssl_ray.data.views import moco_v2_views
from ssl_ray.experiments import load
from ssl_ray.spec import Spec


class Slow(ViewPipeline):
    def write(self, *arguments, **keywords):
        time.sleep(0.03)
        super().write(*arguments, **keywords)


def slow_views(size: int = 16):
    return Slow(moco_v2_views(size=size).views)


SLOW = replace(load("moco").SMALL, views=Spec(slow_views))
"""
IMAGES, EPOCHS = 128, 30
STEPS = EPOCHS * (IMAGES // 32)
ARGUMENTS = [
    *("pretrain", "slow.py:SLOW", *TINY[1:], f"--epochs={EPOCHS}", "--workers=2", "--cpus-per-worker=1"),
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
    folder = tmp_path_factory.mktemp("photos")
    for i in range(IMAGES):
        (folder / f"{i:03}.png").write_bytes(encode(photo()[: 300 + i], "PNG"))
    return f"--data={folder}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, nodes: Nodes, photos: str) -> dict[str, Any]:
    here = tmp_path_factory.mktemp("undisturbed")
    (here / "slow.py").write_text(SLOW)
    return summary(run(here, *ARGUMENTS, photos, "--json", f"--address={nodes.address}", env=ENV))


def same_weights(checkpoint: str | Path, undisturbed: dict[str, Any]) -> bool:
    ours, theirs = state(checkpoint), state(undisturbed["checkpoint"])
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def step_of(folder: Path) -> int:
    step: int = torch.load(folder / checkpoints(folder)[-1] / "checkpoint.pt", weights_only=True)["next_step"]
    return step


def wait_for_another(folder: Path, what: str, process: "subprocess.Popen[str]") -> None:
    """Until there is a newer checkpoint than now; prints how long that took."""
    (before,), began = checkpoints(folder)[-1:], time.monotonic()
    wait_for(lambda: checkpoints(folder)[-1:] not in ([], [before]), f"checkpoint after {what}", process)
    print(f"a checkpoint {time.monotonic() - began:.0f} s after {what}")


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
    (tmp_path / "slow.py").write_text(SLOW)
    process = start(tmp_path, *ARGUMENTS, photos, "--name=run", f"--address={nodes.address}", env=ENV)
    folder = tmp_path / "runs" / "run"
    try:
        wait_for(lambda: checkpoints(folder), "first checkpoint", process)
        kill_data_task(nodes, process)
        wait_for_another(folder, "a data task was killed", process)
        said = (tmp_path / "err.txt").read_text()
        assert "warning" not in said, "Ray Data does the task again, and training goes on"
        node = next(
            name
            for name in ("first", "second")
            if any("RayTrainWorker" in does for _, does in nodes.workers(name))
        )
        nodes.kill(node)
        wait_for_another(folder, "a node was lost", process)
        assert process.wait(timeout=120) == 0, (tmp_path / "err.txt").read_text()
    finally:
        process.kill()
        process.wait()
    assert step_of(folder) == STEPS
    assert same_weights(folder / checkpoints(folder)[-1], undisturbed)
    err = (tmp_path / "err.txt").read_text()
    print(err)
    assert "Traceback" not in err
    nodes.add(node, 2)


def test_the_head_is_lost_and_the_run_is_continued_elsewhere(
    tmp_path: Path, nodes: Nodes, photos: str, undisturbed: dict[str, Any]
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
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
        process.wait()
        print(err.read_text())
        lost.close()
    assert code == 2
    *before, line = err.read_text().splitlines()
    assert all(said.startswith("moco: step ") for said in before if said), "progress and nothing else"
    assert line.startswith("ssl-ray: the cluster's head at ")
    assert line.endswith(
        f" is gone; all up to the last checkpoint is kept in {folder}: continue with "
        f"`ssl-ray pretrain --resume {folder}`"
    )
    assert 0 < step_of(folder) < STEPS

    resumed = summary(
        run(tmp_path, "pretrain", "--resume=run", "--json", f"--address={nodes.address}", env=ENV)
    )
    assert resumed["steps"] == STEPS
    assert same_weights(resumed["checkpoint"], undisturbed)
