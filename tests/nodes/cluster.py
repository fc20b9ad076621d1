"""A Ray cluster of several nodes: raylets on this machine, each in its own processes, on loopback. They can be killed.

A node that comes by `add_elsewhere` is in a mount namespace of its own, in which a folder is another disk's.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# A dead node is known to be dead in 2 seconds, and a placement that cannot be is tried again after 8.
ENV = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8",
    "OMP_NUM_THREADS": "1",
}

# Reads a line of JSON for each node to start, the first one being the head. Ends when its input does.
RAYLETS = """
import json, sys
from ray.cluster_utils import Cluster

cluster = Cluster()
for line in sys.stdin:
    node = cluster.add_node(**json.loads(line))
    pids = {kind: processes[0].process.pid for kind, processes in node.all_processes.items()}
    print(json.dumps({"address": cluster.address, "id": node.node_id, "pids": pids}), flush=True)
"""

# Which tasks ran where and since when: {job: {task: [[node id, nanoseconds], ...]}}.
PLACED = """
import json, sys, ray
from collections import defaultdict
from ray._private.state import state
from ray.core.generated.common_pb2 import RUNNING

ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
found = defaultdict(lambda: defaultdict(list))
for event in state._get_all_task_events():
    update = event.state_updates
    if update.node_id and RUNNING in update.state_ts_ns:
        began = [update.node_id.hex(), update.state_ts_ns[RUNNING]]
        found[event.job_id.hex()][event.task_info.name].append(began)
print(json.dumps(found))
"""


# `ray start`, which refuses to join a cluster that is told to stay on loopback.
START = """
from ray._private import ray_constants, services

ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda *_: "127.0.0.1"
from ray.scripts.scripts import main

main()
"""


@dataclass(frozen=True)
class Placed:
    """tasks: of a job; by a name, the node of each and since when it ran, ns."""

    tasks: dict[str, list[tuple[str, int]]]

    def nodes(self, task: str, after: int = 0) -> set[str]:
        """Names of the nodes on which tasks ran with `task` in their name, of those that began `after` then."""
        return {
            node for name, at in self.tasks.items() if task in name for node, since in at if since >= after
        }


class Nodes:
    """The cluster. Nodes have names; `ids` are Ray's."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RAYLETS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ENV,
        )
        self._elsewhere: list[subprocess.Popen[bytes]] = []
        self._pids: dict[str, dict[str, int]] = {}
        self._seen: dict[int, psutil.Process] = {}
        self.ids: dict[str, str] = {}
        self.address = ""

    def add(self, name: str, cpus: float, **options: Any) -> None:
        """Starts a node; the first one is the head."""
        options = {"num_cpus": cpus, "include_dashboard": False} | options
        if self.address:
            del options["include_dashboard"]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(options), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        self.address, self.ids[name], self._pids[name] = answer["address"], answer["id"], answer["pids"]
        self._remember()

    def add_elsewhere(self, cpus: int, hidden: Path) -> None:
        """Starts a node that has an empty disk of its own at `hidden`, and waits until it is there."""
        command = (
            f"mount -t tmpfs none {hidden} && exec {sys.executable} -c {shlex.quote(START)} start --block"
        )
        options = f"--address={self.address} --num-cpus={cpus} --object-store-memory=100000000 "
        options += "--dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0"
        process = subprocess.Popen(
            [*UNSHARE, "sh", "-c", f"{command} {options}"],
            env=os.environ | ENV,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._elsewhere.append(process)
        before = len(self.ids)
        code = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR'); import time\n"
        code += "while sum(n['Alive'] for n in ray.nodes()) <= int(sys.argv[2]): time.sleep(0.1)"
        subprocess.run(
            [sys.executable, "-c", code, self.address, str(before)], env=os.environ | ENV, timeout=60
        )
        self._remember()

    def workers(self, name: str) -> Iterator[tuple[psutil.Process, str]]:
        """Processes of a node's tasks and actors, each with what it does: "ray::IDLE", ..."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._pids[name]["raylet"]).children():
                self._seen[process.pid] = process
                with contextlib.suppress(psutil.NoSuchProcess):
                    yield process, " ".join(process.cmdline())

    def kill(self, name: str) -> None:
        """SIGKILL to a node's raylet, and to the head's GCS: what a machine does that loses its power."""
        self._remember()
        for kind in ("gcs_server", "raylet"):
            if kind in self._pids[name]:
                os.kill(self._pids[name][kind], signal.SIGKILL)

    def placed(self) -> list[Placed]:
        """Each job's tasks, the oldest job first."""
        names = {node: name for name, node in self.ids.items()}
        done = subprocess.run(
            [sys.executable, "-c", PLACED, self.address],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env=os.environ | ENV,
        )
        return [
            Placed(
                {name: [(names.get(node, "?"), since) for node, since in at] for name, at in tasks.items()}
            )
            for _, tasks in sorted(json.loads(done.stdout.splitlines()[-1]).items())
        ]

    def last_job(self, task: str) -> Placed:
        """That of the last job which had a task of that name."""
        return [job for job in self.placed() if job.nodes(task)][-1]

    def close(self) -> None:
        """Ends all of it, and nothing else."""
        self._remember()
        self._process.kill()
        self._process.communicate()
        for process in self._seen.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for elsewhere in self._elsewhere:
            elsewhere.wait()

    def _remember(self) -> None:
        roots = [self._process.pid, *(process.pid for process in self._elsewhere)]
        for root in roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
                    self._seen[process.pid] = process


def four_nodes() -> Nodes:
    """A head that only directs, two nodes on each of which two workers find room, and one CPU for the data."""
    nodes = Nodes()
    for name, cpus in {"head": 0, "first": 2, "second": 2, "data": 1}.items():
        nodes.add(name, cpus)
    return nodes


UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]


def no_namespaces() -> str:
    """Why this machine gives no mount namespace; empty if it does."""
    if shutil.which("unshare") is None:
        return "there is no `unshare` here"
    done = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""
