"""What a cluster can serve is known before anything starts. The cluster of the slow tests has 4 CPUs."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray

from ssl_ray.errors import UserError
from ssl_ray.training import cluster
from ssl_ray.training.cluster import Resources, fit, fit_workers
from tests.conftest import ClusterProcess
from tests.runs import environment

HEAD: dict[str, float] = {"memory": 1e9}
DATA, GPU = {"CPU": 8.0}, {"CPU": 8.0, "GPU": 8.0}


def nodes(*several: dict[str, float]) -> list[dict[str, float]]:
    """As `alive_nodes` gives them: those without CPUs are left out there."""
    return [node for node in several if node.get("CPU")]


@pytest.mark.parametrize(
    ("workers", "has", "expected"),
    [
        pytest.param(2, nodes(HEAD, DATA), (3, 0), id="a head without CPUs is no second machine"),
        pytest.param(8, nodes(HEAD, GPU), (0.85, 1), id="a lone GPU node keeps a CPU for the data"),
        pytest.param(8, nodes(HEAD, GPU, DATA), (1, 1), id="all CPUs of the GPU node, data elsewhere"),
        pytest.param(2, nodes({"CPU": 64.0}, {"CPU": 1.0, "GPU": 2.0}), (0.5, 1), id="2 GPUs share one CPU"),
        pytest.param(4, nodes({"CPU": 2.0}, {"CPU": 2.0}), (0.65, 0), id="what is left must be on one node"),
        pytest.param(4, nodes({"CPU": 4.0}, {"CPU": 1.0}), (1, 0), id="the small node is for the data"),
        pytest.param(3, nodes({"CPU": 2.0}, {"CPU": 2.0}), (1, 0), id="workers on both"),
        pytest.param(1, nodes({"CPU": 4.0}), (3, 0), id="one machine, one worker"),
    ],
)
def test_what_a_worker_takes_by_default(
    workers: int, has: list[dict[str, float]], expected: tuple[float, float]
) -> None:
    assert fit(workers, None, None, has) == Resources(*expected)


@pytest.mark.parametrize(
    ("asked", "has", "message"),
    [
        ((1, None, None), nodes(HEAD), "the cluster has 0 CPUs and 0 GPUs on 0 nodes; use a larger cluster"),
        ((2, 8.0, 0.0), nodes(HEAD, DATA, DATA), "need 16 and the data one more"),
        (
            (4, 0.75, 0.0),
            nodes({"CPU": 2.0}, {"CPU": 2.0}),
            "leave no node a whole CPU .* use --workers 3 or fewer",
        ),
        ((2, 3.0, 0.0), nodes(*[{"CPU": 2.0}] * 5), "only 0 of 2 workers .* nodes; use smaller workers"),
        (
            (9, None, None),
            nodes(GPU, DATA),
            "9 workers x 1 GPUs need 9, .* use --workers 8 or --gpus-per-worker 0",
        ),
        ((1, None, 1.0), nodes(DATA), "1 workers x 1 GPUs need 1, .* on 1 node; use --gpus-per-worker 0"),
        (
            (9, 1.0, 0.5),
            nodes({"CPU": 4.0, "GPU": 4.0}, DATA),
            "need 4.5, .* use --workers 8 or --gpus-per-worker 0",
        ),
    ],
)
def test_what_nodes_cannot_serve(
    asked: tuple[int, float | None, float | None], has: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fit(*asked, has)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("workers", "cpus"), [(1, 3.0), (2, 1.0), (3, 1.0), (4, 0.75), (6, 0.5), (12, 0.25)])
def test_workers_leave_a_cpu_for_the_data(ray_cluster: None, workers: int, cpus: float) -> None:
    assert fit_workers(workers, None, None) == Resources(cpus, 0.0)
    assert workers * cpus <= 3


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "message"),
    [
        (13, None, None, "need 3.25 CPUs at the least .* use --workers 12 or fewer, or a larger cluster"),
        (4, 1.0, None, "4 workers x 1 CPUs need 4 and the data one more"),
        (2, None, 1.0, "2 workers x 1 GPUs need 2, the cluster has 4 CPUs and 0 GPUs on 1 node"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    ray_cluster: None, workers: int, cpus: float | None, gpus: float | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fit_workers(workers, cpus, gpus)
    assert "\n" not in str(caught.value)


@pytest.mark.process
def test_a_token_goes_where_it_is_wanted(
    two_cpus: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To a cluster that wants one; one that asks for none would be lost with it."""
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with ClusterProcess(1, RAY_AUTH_MODE="token") as with_token:
        assert not cluster._wants_token(two_cpus)
        assert cluster._wants_token(with_token.address)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert not cluster._wants_token(two_cpus)
        with pytest.raises(UserError, match="wants a token; put its token into"):
            cluster._wants_token(with_token.address)


# Ray's cleaner of what a killed trial's workers held finds its cluster by this, else takes the latest of the machine.
ASKS = """
import sys
import ray
from ssl_ray.training.cluster import connect

connect(sys.argv[1], verbose=False)

@ray.remote(num_cpus=0)
def asks():
    import os

    return os.environ.get("RAY_ADDRESS")

print(ray.get(asks.remote()), ray.get_runtime_context().gcs_address)
"""


@pytest.mark.process
@pytest.mark.parametrize("started", [False, True])
def test_tasks_know_their_cluster(two_cpus: str, tmp_path: Path, started: bool) -> None:
    """While another one runs on this machine."""
    given = "local" if started else two_cpus
    done = subprocess.run(
        [sys.executable, "-c", ASKS, given], env=environment(tmp_path), capture_output=True, text=True
    )
    told, own = done.stdout.split()
    assert told == own, done.stderr
    assert (own == two_cpus) is not started


@pytest.mark.process
def test_the_first_token_of_a_machine_is_made_once(tmp_path: Path) -> None:
    """Two first runs at a time: each would make one, and its cluster refuse what read the other's."""
    code = "from ssl_ray.training.token import make_token; input(); make_token()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"{code}; print(open({str(tmp_path / '.ray' / 'auth_token')!r}).read())"],
            env=environment(tmp_path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    seen = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert len(seen) == 1
    assert len(seen.pop()) == 64
    assert [path.name for path in (tmp_path / ".ray").iterdir()] == ["auth_token"]


def test_an_autoscaler_that_reports_its_limits_is_believed(ray_cluster: None) -> None:
    """Written to Ray's head as an autoscaler does, and read back by Ray. The nodes of the test have 4 CPUs."""
    from ray._private.state import state
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

    said: list[str] = []
    gcs = GcsClient(ray.get_runtime_context().gcs_address)
    with pytest.raises(UserError, match="the cluster has 4 CPUs"):
        fit_workers(6, 1.0, None, said.append)
    config = ClusterConfig()
    config.node_group_configs.add(name="small", max_count=2, resources={"CPU": 4})
    gcs.report_cluster_config(config.SerializeToString())
    try:
        assert state.get_max_resources_from_cluster_config() == {"CPU": 8}
        assert fit_workers(2, 1.0, None, said.append) == Resources(1.0, 0.0)
        assert said == [], "these fit now"
        assert fit_workers(6, 1.0, None, said.append) == Resources(1.0, 0.0)
        assert said == ["the cluster grows: 2 workers of 1 CPUs and 0 GPUs wait for nodes"]
        assert fit_workers(4, 1.0, None, said.append) == Resources(1.0, 0.0)
        assert said[1:] == ["the cluster grows: the data waits for a node"]
        with pytest.raises(
            UserError, match="the cluster grows to 8 CPUs and 0 GPUs on 2 nodes; use --workers 7"
        ):
            fit_workers(8, 1.0, None, said.append)
    finally:
        gcs.report_cluster_config(ClusterConfig().SerializeToString())
