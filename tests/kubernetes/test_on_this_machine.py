"""A manifest, taken at its word: a Ray node for each pod, started as the operator starts it, and the job submitted.

What is not here is Kubernetes: processes stand for pods, one machine for the network, a folder for the volume.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.kubernetes.command import manifest
from tests.pods import BIN, free_port
from tests.runs import TINY

pytestmark = pytest.mark.cluster

# What the pod's memory would decide.
OBJECT_STORE = 100 * 2**20
UNITS = {"Gi": 2**30, "Mi": 2**20}

STATE = """
import json, sys
from ray.util.state import list_actors, list_nodes, list_tasks
where = dict(address=sys.argv[1], limit=10_000, detail=True)
print(json.dumps({
    "head": [n.node_id for n in list_nodes(address=sys.argv[1]) if n.is_head_node],
    "nodes": {n.node_id: n.resources_total for n in list_nodes(address=sys.argv[1], detail=True)},
    "actors": [(a.class_name, a.node_id, a.required_resources) for a in list_actors(**where)],
    "tasks": [(t.name, t.node_id, t.required_resources) for t in list_tasks(**where) if t.type == "NORMAL_TASK"],
}))
"""


def flags(group: dict[str, Any]) -> dict[str, str]:
    """`ray start`'s flags for a pod of the group: KubeRay's setMissingRayStartParams and generateRayStartCommand.

    The group's rayStartParams come first; CPUs (limit, else request), memory and GPUs of the Ray container fill in what
    they do not say.
    """
    resources = group["template"]["spec"]["containers"][0]["resources"]
    requests, limits = resources["requests"], resources["limits"]
    memory = limits["memory"]
    filled = {
        "num-cpus": str(limits.get("cpu", requests.get("cpu"))),
        "memory": str(int(memory[:-2]) * UNITS[memory[-2:]]),
        "block": "true",
    }
    if gpus := limits.get("nvidia.com/gpu"):
        filled["num-gpus"] = str(gpus)
    return filled | group.get("rayStartParams", {})


def command(flags: dict[str, str], *further: str) -> list[str]:
    """As convertParamMap writes flags."""
    said = [f"--{name}" if value == "true" else f"--{name}={value}" for name, value in flags.items()]
    # One machine: every node its own ports, and an object store that fits.
    ports = [f"--{name}={free_port()}" for name in ("dashboard-agent-listen-port", "metrics-export-port")]
    return [str(BIN / "ray"), "start", *said, *ports, f"--object-store-memory={OBJECT_STORE}", *further]


@contextmanager
def process(words: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    """A pod: told to end by SIGTERM, and ended after a while."""
    with log.open("wb") as out:
        started = subprocess.Popen(words, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def end_all_of(folder: str) -> None:
    """Ends what is left of the cluster whose files are in a folder that no other has."""
    of_it = [p for p in psutil.process_iter(["cmdline"]) if folder in " ".join(p.info["cmdline"] or [])]
    for left in of_it:
        left.kill()
    psutil.wait_procs(of_it, timeout=10)


def until_started(log: Path, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while "Ray runtime started" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@contextmanager
def cluster(spec: dict[str, Any], env: dict[str, str], folder: Path) -> Iterator[str]:
    """A Ray node for the head and for each replica of each group. Yields the dashboard's address."""
    # Ray's nodes cannot share a machine on loopback alone; the token keeps others out.
    port, dashboard = free_port(), free_port()
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets' paths must be short
    head = command(
        flags(spec["headGroupSpec"]),
        "--head",
        f"--port={port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--temp-dir={temporary}",
    )
    pods = [
        command(flags(group), f"--address=127.0.0.1:{port}")
        for group in spec["workerGroupSpecs"]
        for _ in range(group["replicas"])
    ]
    logs = [folder / f"pod{i}.txt" for i in range(1 + len(pods))]
    try:
        with ExitStack() as stack:
            stack.enter_context(process(head, env, logs[0]))
            until_started(logs[0])
            for pod, log in zip(pods, logs[1:], strict=True):
                stack.enter_context(process(pod, env, log))
                until_started(log)  # one by one: nodes of one machine that start together take the same names
            yield f"http://127.0.0.1:{dashboard}"
    finally:
        end_all_of(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def test_a_job_of_three_pods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    made = manifest(
        "moco --workers 2 --gpus-per-worker 0 --data-cpus 1 --data-pods 1 --image none "
        f"--claim shared:{shared} --storage {shared} --name tiny "
        f"--env MLFLOW_TRACKING_URI=sqlite:///{shared}/mlflow.db "
        f"-- --epochs=1 {' '.join(TINY)}",
        monkeypatch,
        capsys,
    )
    spec = made["spec"]
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "MLFLOW_", "SSL_RAY_"))}
    env = kept | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        # What the operator sets in every container for `mode: token`.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-this-test",
    }
    with cluster(spec["rayClusterSpec"], env, tmp_path) as dashboard:
        # The operator's submitter: a shell, with the runtime environment as JSON in double quotes.
        runtime_env = json.dumps(json.dumps(yaml.safe_load(spec["runtimeEnvYAML"])))
        submit = (
            f"ray job submit --address {dashboard} --runtime-env-json {runtime_env} -- {spec['entrypoint']}"
        )
        done = subprocess.run(
            ["bash", "-c", submit], env=env, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout
        state = json.loads(
            subprocess.run(
                [sys.executable, "-c", STATE, dashboard], env=env, capture_output=True, text=True, check=True
            ).stdout.splitlines()[-1]
        )
        refused = subprocess.run(
            ["bash", "-c", f"ray job list --address {dashboard}"],
            env=env | {"RAY_AUTH_TOKEN": "another"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert refused.returncode != 0, "the cluster asks for the manifest's token"
    record = json.loads((shared / "tiny" / "run.json").read_text())
    assert record["summary"]["status"] == "finished"
    assert record["summary"]["steps"] == 1297 // 32
    assert Path(record["summary"]["checkpoint"]).is_dir()
    (head,) = state["head"]
    assert len(state["nodes"]) == 4
    assert state["nodes"][head].get("CPU", 0) == 0
    trained = [node for name, node, _ in state["actors"] if name == "RayTrainWorker"]
    assert len(set(trained)) == len(trained) == 2, "a worker in each training pod"
    made_views = {node for name, node, _ in state["tasks"] if "_MakeBlocks" in name}
    # The first blocks are made before the workers are up, wherever there is a CPU; the others in the data pod.
    assert made_views - set(trained)
    assert head not in made_views | set(trained)
    on_head = [(name, needs) for name, node, needs in state["actors"] + state["tasks"] if node == head]
    assert all(not (needs or {}).get("CPU") for _, needs in on_head), on_head
