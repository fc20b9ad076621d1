"""What tests of several files share: clusters, ranks, S3, a compiler; what a test may cost, and which comes first."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faulty_s3 import FaultyS3
    from tests.ranks import Ranks

# What a test costs, and about how many seconds. Its fixtures say so, or a mark where it starts something itself; the
# dearest counts, and a test of which nothing is said is a unit.
COSTS = {"unit": 0.1, "ray": 5, "process": 10, "cluster": 60}
OF_A_FIXTURE = {
    "ray_cluster": "ray",
    "two_cpus": "ray",
    "ranks": "process",
    "s3_server": "process",
    "server": "process",
}
# CPU seconds of this process: a busy machine makes far more of wall time.
UNIT_BUDGET_S = 5.0


def unit_budget() -> float:
    """Half as much again, for slower processors; more where processes outnumber cores, whose halves they share, too."""
    return UNIT_BUDGET_S * max(1.5, os.getloadavg()[0] / (os.cpu_count() or 1))


def cost(item: pytest.Item) -> str:
    named = {mark.name for mark in item.iter_markers()}
    named |= {OF_A_FIXTURE.get(name, "unit") for name in getattr(item, "fixturenames", ())}
    return max(named & COSTS.keys() | {"unit"}, key=list(COSTS).index)


@pytest.hookimpl(tryfirst=True)  # before marks select
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with its cost, and puts files first that take long: they are shared out to processes whole."""
    seconds: Counter[Path] = Counter()
    for item in items:
        name = cost(item)
        item.add_marker(name)
        seconds[item.path] += COSTS[name]
    items.sort(key=lambda item: -seconds[item.path])


started: list[str] = []


def _note_process(event: str, arguments: tuple[Any, ...]) -> None:
    # A Python, or one of the commands beside it: not the likes of git and uname, which libraries ask once a process.
    program = Path(str(arguments[0])) if event == "subprocess.Popen" else None
    if event in ("os.fork", "os.forkpty") or (program and program.parent == Path(sys.executable).parent):
        started.append(f"{event} {arguments[:2]}"[:200])


sys.addaudithook(_note_process)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """A test is as cheap as its mark says."""
    if cost(item) != "unit":
        return (yield)
    started.clear()
    before = time.process_time()
    yield
    spent = time.process_time() - before
    if started:
        pytest.fail(f"a unit test that starts a process: {started[0]}; mark it as `process`", pytrace=False)
    if spent > (budget := unit_budget()):
        pytest.fail(
            f"a unit test that takes {spent:.1f} s of CPU time, more than {budget:.1f} (of this process, and by the "
            "load of the machine: it is not that others were busy); do less, with smaller networks, images or rows",
            pytrace=False,
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.split("::")[0]

    return ByFile(config, log)


@pytest.fixture
def compiler() -> Any:
    """A backend for `torch.compile` that counts the graphs it was given, in a compiler that remembers no earlier test.

    All algorithms share the code of `BaseModel.forward`: past torch's limit of recompilations in one process it would
    run uncompiled, without a word. So a test that uses the backend asserts that its `op_count` is not 0.
    """
    import torch
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    return CompileCounterWithBackend("aot_eager")


@pytest.fixture(scope="session")
def ranks() -> Iterator["Ranks"]:
    """Living gloo processes: `ranks(4, function)` is what the function returns on each of four."""
    from tests.ranks import Ranks

    pool = Ranks()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """Host and port of a real S3 server on this machine."""
    server_module = pytest.importorskip(
        "moto.server", reason="moto is not installed: no S3 server to test against"
    )
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def s3(s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str]:
    """Our account there: (pyarrow file system, with an empty bucket `pictures`, and URI suffix)."""
    from pyarrow import fs

    host, port = s3_server
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = fs.S3FileSystem(
        endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
    )
    client.create_dir("pictures")
    client.delete_dir_contents("pictures")
    return client, f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"


@pytest.fixture
def faulty(
    s3: tuple[Any, str], s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> Iterator["FaultyS3"]:
    """A proxy in front of `s3`, for an impatient client: 3 repetitions, a second of silence, hardly a pause."""
    from ssl_ray import filesystems
    from tests.faulty_s3 import FaultyS3

    monkeypatch.setattr(filesystems, "REQUEST_RETRIES", 3)
    monkeypatch.setattr(filesystems, "SILENCE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(filesystems, "BACKOFF_S", 0.001)
    proxy = FaultyS3(*s3_server)
    yield proxy
    proxy.close()


CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cpus = int(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


class ClusterProcess:
    """A cluster of one node in a process of its own, whose descendants it is; it ends with us."""

    def __init__(self, cpus: int, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, str(cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"} | env,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, "Ray did not start"

    def __enter__(self) -> "ClusterProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)


@pytest.fixture(scope="session")
def four_cpus() -> Iterator[str]:
    """Address of the cluster that `ray_cluster` joins."""
    with ClusterProcess(4) as cluster:
        yield cluster.address


@pytest.fixture(scope="module")
def ray_cluster(four_cpus: str) -> Iterator[None]:
    """This process is connected to a cluster of 4 logical CPUs while the tests of a file run."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(address=four_cpus, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def two_cpus_process() -> Iterator[ClusterProcess]:
    """The process whose descendants are the cluster `two_cpus`."""
    with ClusterProcess(2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def two_cpus(two_cpus_process: ClusterProcess) -> str:
    """Address of a cluster of 2 logical CPUs, whatever the machine has, which asks for no token.

    It is for runs: of the command in a process of its own, or of `tests.runs.drive` in this one. Each process of the
    tests that needs one has its own.
    """
    return two_cpus_process.address
