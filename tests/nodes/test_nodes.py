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

pytestmark = [pytest.mark.slow, pytest.mark.long]

TRAIN = ["pretrain", "moco", *TINY, "--epochs=1", "--workers=2", "--json"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = four_nodes()
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def across(here: Path, nodes: Nodes) -> dict[str, Any]:
    """A worker on each of two nodes, and the data on the third."""
    there = [f"--address={nodes.address}", "--cpus-per-worker=2", "--name=across"]
    return summary(run(here, *TRAIN, *there, env=ENV))


def last_job(nodes: Nodes, task: str) -> dict[str, set[str]]:
    """Where the tasks ran of the last job that had one of that name."""
    return [job for job in nodes.placed() if any(task in name for name in job)][-1]


def where(job: dict[str, set[str]], task: str) -> set[str]:
    return set().union(*(placed for name, placed in job.items() if task in name))


def test_workers_and_data_go_where_there_is_room(across: dict[str, Any], nodes: Nodes) -> None:
    job = last_job(nodes, "RayTrainWorker")
    assert where(job, "RayTrainWorker") == {"first", "second"}
    made = where(job, "_MakeBlocks")
    assert "data" in made, (
        "the workers leave room there alone; before they start there is room on their nodes too"
    )
    assert "head" not in made


def test_nodes_make_no_difference(across: dict[str, Any], here: Path, nodes: Nodes) -> None:
    there = [f"--address={nodes.address}", "--cpus-per-worker=0.5", "--name=together"]
    together = summary(run(here, *TRAIN, *there, env=ENV))
    job = last_job(nodes, "RayTrainWorker")
    assert len(where(job, "RayTrainWorker")) == 1
    assert "head" not in where(job, "_MakeBlocks")
    assert together["steps"] == across["steps"] == 1297 // 32
    ours, theirs = state(together["checkpoint"]), state(across["checkpoint"])
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_features_of_all_nodes_are_those_of_one(across: dict[str, Any], here: Path, nodes: Nodes) -> None:
    embed = ["embed", across["folder"], f"--address={nodes.address}", "--json"]
    features = {}
    for actors, name in ((3, "three"), (1, "one")):
        summary(run(here, *embed, f"--actors={actors}", f"--out={name}", env=ENV))
        assert len(where(last_job(nodes, "_Actor"), "_Actor") - {"head"}) >= (2 if actors == 3 else 1)
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
    job = last_job(nodes, "RayTrainWorker")
    assert where(job, "RayTrainWorker") == {"first", "second"}
    assert "data" in where(job, "_MakeBlocks")
    assert "head" not in where(job, "_MakeBlocks")


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
