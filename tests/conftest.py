"""Ray clusters that tests share: one of this process, and one that runs of the real command join."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of Ray come first and stay together: they take longest, and two clusters would fight for the machine."""
    for item in items:
        if {"ray_cluster", "two_cpus"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.ray)
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


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
