"""Groups that grow and shrink: which sizes there is room for, and that a resize changes no number."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from ssl_ray.console import TrainStatus
from ssl_ray.training.cluster import Resources
from ssl_ray.training.elastic import largest
from tests.nodes.cluster import ENV, Nodes
from tests.runs import checkpoints, start, wait_for
from tests.training import local

ONE_CPU = Resources(1.0, 0.0)


@pytest.mark.parametrize(
    ("cpus", "size"),
    [
        ([1, 1, 1], 2),  # the third CPU makes the data
        ([4], 2),  # three would fit, but do not divide the batch
        ([5], 4),
        ([2, 1], 2),
        ([1], 0),
        ([], 0),
        ([0.5] * 8, 0),  # workers of a CPU fit nowhere
    ],
)
def test_the_largest_size_that_leaves_the_data_a_cpu(cpus: list[float], size: int) -> None:
    assert largest((1, 2, 4), 4, ONE_CPU, [{"CPU": n} for n in cpus]) == size


def test_gpus_bound_the_group_and_other_requests_its_room() -> None:
    nodes: list[dict[str, float]] = [{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}, {"CPU": 16}]
    assert largest((1, 2, 3, 4), 4, Resources(1.0, 1.0), nodes) == 3
    assert largest((1, 2, 3, 4), 2, Resources(1.0, 1.0), nodes) == 2


# Takes a second for a step while there is a file of that name.
SLOW = """
import os, time
from dataclasses import replace
from ssl_ray.experiments import load
from ssl_ray.models import MAE
from ssl_ray.spec import Spec


class Slow(MAE):
    def loss(self, views, samples):
        time.sleep(0.7 if os.path.exists({path!r}) else 0.0)
        return super().loss(views, samples)


SMALL = replace(load("mae").SMALL, algorithm=Spec(Slow, **load("mae").SMALL.algorithm.kwargs))
"""
RECIPE = [
    "--data=digits",
    "--steps=60",
    "--set=training.global_batch_size=32",
    # Rounding differs with the number of workers. It must not grow: no batch norm over few rows, no division by the
    # root of a small second moment.
    "--set=optimization.optimizer=SGD(momentum=0.9)",
    "--set=optimization.base_lr=0.01",
    "--set=training.log_steps=1",
    "--set=training.checkpoint_steps=10",
    "--set=training.checkpoint_minutes=null",
    "--set=evaluation.every_epochs=null",
]


def losses(store: Path, name: str) -> dict[int, float]:
    """Each step's loss, the newest where a step was done twice."""
    with sqlite3.connect(store) as connection:
        rows = connection.execute(
            "select m.step, m.value from metrics m join runs r using (run_uuid) "
            "where r.name = ? and m.key = 'train/loss' order by m.timestamp",
            (name,),
        )
        return dict(rows.fetchall())


def trains(cluster: Nodes, name: str) -> bool:
    return any("RayTrainWorker" in what for _, what in cluster.workers(name))


@pytest.mark.cluster
def test_two_workers_then_one_then_two_lose_nothing(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    (tmp_path / "slow.py").write_text(SLOW.format(path=str(hold)))
    still = local.train(local.job_of(str(tmp_path / "slow.py"), *RECIPE), tmp_path / "still")
    err = tmp_path / "err.txt"
    env = ENV | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
    with contextlib.closing(Nodes()) as cluster:
        for name in ("head", "a", "b"):
            cluster.add(name, 1)
        there = ["slow.py", *RECIPE, f"--address={cluster.address}"]
        hold.touch()
        process = start(tmp_path, "pretrain", *there, "--workers=1..2", "--name=elastic", env=env)
        folder = tmp_path / "runs" / "elastic"
        wait_for(lambda: checkpoints(folder), "first checkpoint", process)
        cluster.kill(next(name for name in ("a", "b") if trains(cluster, name)))
        wait_for(lambda: "on 1 worker\n" in err.read_text(), "a group of one", process)
        cluster.add("c", 1)
        wait_for(lambda: "on 2 workers\n" in err.read_text(), "a group of two", process)
        os.remove(hold)
        assert process.wait(timeout=120) == 0, err.read_text()

    said = err.read_text() + (tmp_path / "out.txt").read_text()
    assert "Traceback" not in said
    assert "(raylet)" not in said, "Ray's own words are for --verbose"
    assert "workers: 1 or 2, as the cluster has room for" in said
    expected = {m.step: m.loss for m in still.messages if isinstance(m, TrainStatus)}
    assert losses(tmp_path / "mlflow.db", "elastic") == pytest.approx(expected, rel=1e-4)
