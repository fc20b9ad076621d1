"""A Ray cluster of several raylets on this machine, in a process of its own; nodes come and go while it runs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil

CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args=json.loads(sys.argv[1]) | {"include_dashboard": False})
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.add_node(**json.loads(line))
    print("added", flush=True)
cluster.shutdown()
"""
# A node that is gone is noticed after seconds rather than half a minute.
IMPATIENT = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
}


class Raylets:
    """address: of the head. `add` starts a node, `raylets` finds them all by what they run."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self.process = process
        self.address = process.stdout.readline().strip()
        assert self.address, "Ray did not start"

    def add(self, **node: float) -> None:
        """Starts a node and waits until it has joined. node: num_cpus and the like."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(node), file=self.process.stdin, flush=True)
        assert self.process.stdout.readline().strip() == "added"

    def with_workers(self) -> list[psutil.Process]:
        """Raylets that have a training worker, the head's last."""
        raylets = {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if "RayTrainWorker" in " ".join(process.cmdline()) and (parent := process.parent()):
                    raylets[parent.pid] = parent
            except psutil.NoSuchProcess:
                continue
        return sorted(raylets.values(), key=lambda raylet: "--head" in raylet.cmdline())


@contextmanager
def raylets(*nodes: Mapping[str, float]) -> Iterator[Raylets]:
    """A cluster whose head is the first of `nodes`."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, json.dumps(dict(nodes[0]))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | IMPATIENT,
    )
    try:
        cluster = Raylets(process)
        for node in nodes[1:]:
            cluster.add(**node)
        yield cluster
    finally:
        process.communicate(timeout=60)
