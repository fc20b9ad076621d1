"""What tests of several files share: Ray clusters, S3, a compiler; and in which order several processes take the files.

One cluster belongs to this process, runs of the real command join the other.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faulty_s3 import FaultyS3
    from tests.ranks import Ranks

# Tests that share the cluster `two_cpus`. They take longest: in a run of several processes they come first and stay in
# one of them, one after another; so do the tests of any other file.
ON_TWO_CPUS = (
    "tests/cli/test_every_recipe.py",
    "tests/cli/test_pretrain.py",
    "tests/cli/test_runs_and_report.py",
    "tests/cli/test_tune.py",
    "tests/faults/",
    "tests/test_readme.py",
    "tests/tracking/test_run_against_server.py",
    "tests/trained/test_finetune.py",
    "tests/trained/test_verbs.py",
    "tests/training/test_cluster.py",
    "tests/tuning/test_kill.py",
    "tests/tuning/test_population.py",
    "tests/tuning/test_schedule.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(ON_TWO_CPUS))
    for item in items:
        shares = "two_cpus" in getattr(item, "fixturenames", ())
        assert not shares or item.nodeid.startswith(ON_TWO_CPUS), (
            f"{item.nodeid}: add its file to ON_TWO_CPUS"
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "on two CPUs" if nodeid.startswith(ON_TWO_CPUS) else nodeid.split("::")[0]

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


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray in this session: 4 logical CPUs, no dashboard."""
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.25"
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="session")
def two_cpus_process() -> Iterator["subprocess.Popen[str]"]:
    """The process whose descendants are the cluster `two_cpus`; its first line of output was the address."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
    )
    yield process
    process.communicate(timeout=60)


@pytest.fixture(scope="session")
def two_cpus(two_cpus_process: "subprocess.Popen[str]") -> str:
    """Address of a cluster of 2 logical CPUs, whatever the machine has; it asks for no token, and ends with us."""
    assert two_cpus_process.stdout is not None
    address = two_cpus_process.stdout.readline().strip()
    assert address, "Ray did not start"
    return address
