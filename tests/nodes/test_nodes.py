"""Training, a search and embedding on several nodes: work goes where there is room, and gives what one node gives."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.data.photos import encode, patch
from tests.nodes.cluster import ENV, Nodes, four_nodes, no_namespaces
from tests.runs import TINY, run, state, summary

pytestmark = pytest.mark.cluster

# Views are made slowly until a run has taken a step: else they would all be there when training begins.
SLOW = """
import os
import time
from dataclasses import replace
from pathlib import Path

from ssl_ray.data.pipeline import ViewPipeline
from ssl_ray.data.views import moco_v2_views
from ssl_ray.experiments import load
from ssl_ray.models import MoCo
from ssl_ray.spec import Spec

HERE = Path(__file__).parent


class SlowUntil(ViewPipeline):
    def write(self, *arguments, **keywords):
        if not any(HERE.glob("*.started")):
            time.sleep(0.02)
        super().write(*arguments, **keywords)


def slow_views(size: int = 16):
    return SlowUntil(moco_v2_views(size=size).views)


class Starts(MoCo):
    def before_step(self, progress):
        super().before_step(progress)
        if progress.step == 0:
            (HERE / f"{os.getpid()}.started").touch()


recipe = load("moco").SMALL
SLOW = replace(recipe, algorithm=Spec(Starts, **recipe.algorithm.kwargs), views=Spec(slow_views))
"""
EPOCHS = 6  # more than is made while Ray Train starts the workers
SMALL = [*TINY, "--set=evaluation.every_epochs=null"]
TRAIN = ["pretrain", "slow.py:SLOW", *SMALL, f"--epochs={EPOCHS}", "--workers=2", "--json"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = four_nodes()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    (folder / "slow.py").write_text(SLOW)
    return folder


@pytest.fixture(scope="module")
def across(here: Path, nodes: Nodes) -> dict[str, Any]:
    """A worker on each of two nodes, and the data on the third."""
    there = [f"--address={nodes.address}", "--cpus-per-worker=2", "--name=across"]
    return summary(run(here, *TRAIN, *there, env=ENV))


def test_workers_and_data_go_where_there_is_room(across: dict[str, Any], here: Path, nodes: Nodes) -> None:
    job = nodes.last_job("RayTrainWorker")
    assert job.nodes("RayTrainWorker") == {"first", "second"}
    assert "head" not in job.nodes("_MakeBlocks")
    began = min(step.stat().st_mtime_ns for step in here.glob("*.started"))
    assert job.nodes("_MakeBlocks", after=began) == {"data"}, "the workers leave room there alone"


def test_nodes_make_no_difference(across: dict[str, Any], here: Path, nodes: Nodes) -> None:
    there = [f"--address={nodes.address}", "--cpus-per-worker=0.5", "--name=together"]
    together = summary(run(here, *TRAIN, *there, env=ENV))
    job = nodes.last_job("RayTrainWorker")
    assert len(job.nodes("RayTrainWorker")) == 1
    assert "head" not in job.nodes("_MakeBlocks")
    assert together["steps"] == across["steps"] == EPOCHS * (1297 // 32)
    ours, theirs = state(together["checkpoint"]), state(across["checkpoint"])
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_features_of_all_nodes_are_those_of_one(across: dict[str, Any], here: Path, nodes: Nodes) -> None:
    embed = ["embed", across["folder"], f"--address={nodes.address}", "--json"]
    features = {}
    for actors, name in ((3, "three"), (1, "one")):
        summary(run(here, *embed, f"--actors={actors}", f"--out={name}", env=ENV))
        assert len(nodes.last_job("_Actor").nodes("_Actor") - {"head"}) >= (2 if actors == 3 else 1)
        parts = sorted((here / name).glob("*.parquet"))
        features[name] = [pq.read_table(part).column("feature").to_pylist() for part in parts]
    assert sum(map(len, features["one"])) == 1797
    assert features["three"] == features["one"]


def test_trials_are_spread(here: Path, nodes: Nodes) -> None:
    search = ["--trials=2", "--concurrent=2", "--max-epochs=1", "--scheduler=random", "--cpus-per-worker=2"]
    values = "--search=optimization.base_lr=choice(0.03, 0.01)"
    tuned = run(
        *(here, "tune", "moco", *TINY, *search, values, "--name=search", "--json"),
        f"--address={nodes.address}",
        env=ENV,
        timeout=400,
    )
    assert [trial["status"] for trial in summary(tuned)["trials"]] == ["finished"] * 2
    job = nodes.last_job("RayTrainWorker")
    assert job.nodes("RayTrainWorker") == {"first", "second"}
    assert "data" in job.nodes("_MakeBlocks"), "the trials leave room there; before they start there is more"
    assert "head" not in job.nodes("_MakeBlocks")


@pytest.mark.skipif(bool(no_namespaces()), reason=f"no mount namespace: {no_namespaces()}")
def test_a_node_that_sees_other_disks_is_found_out_before_anything_starts(here: Path, nodes: Nodes) -> None:
    private = here / "private"
    (private / "photos").mkdir(parents=True)
    for i in range(40):
        (private / "photos" / f"{i}.jpg").write_bytes(encode(patch(size=32 + i)))
    nodes.add_elsewhere(1, hidden=private)
    database = {"MLFLOW_TRACKING_URI": f"sqlite:///{private / 'mlflow.db'}"}
    data = [*TINY[1:], f"--data={private / 'photos'}", f"--storage={private / 'runs'}"]
    done = run(here, "pretrain", "moco", *data, f"--address={nodes.address}", env=ENV | database)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    for said in (
        f"data: {private / 'photos'} is not the same on all 5 nodes of the cluster (",
        "other images, or none",
        "ssl-ray data prepare DATA --out s3://",
        f"storage: {private / 'runs'} is not the same",
        "no such folder",
        f"tracking: {private} is not the same",
        "another folder of that name",
        "MLFLOW_TRACKING_URI",
    ):
        assert said in line
    assert not list(private.glob("**/.ssl-ray-*")), "probes are taken away"
    assert not (private / "mlflow.db").exists()
