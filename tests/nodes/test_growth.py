"""A cluster that is only a head until there is work: Ray's own autoscaler starts nodes on this machine."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.nodes.cluster import ENV
from tests.runs import TINY, checkpoints, run

pytestmark = pytest.mark.cluster

# Ray's provider of fake nodes looks for the head here and nowhere else, and calls it so.
PORT = 6379
HEAD = "ray.head.default"
HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
AUTOSCALER = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
CONFIG = {
    "cluster_name": "grows",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
    },
    "head_node_type": HEAD,
    "available_node_types": {
        HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    **{key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands")},
    **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
    **{key: [] for key in ("cluster_synced_files", "worker_setup_commands")},
    "file_mounts": {},
    "auth": {"ssh_user": "nobody"},
}


def listens() -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a head without CPUs, beside which two nodes of two CPUs may be."""
    if listens():
        pytest.skip(f"somebody listens on port {PORT}")
    (tmp_path / "cluster.json").write_text(json.dumps(CONFIG))
    options = ["--head", "--block", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", *options),
            f"--autoscaling-config={tmp_path / 'cluster.json'}",
        ],
        env=os.environ | ENV | AUTOSCALER,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not listens():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield f"127.0.0.1:{PORT}"
    for one in [process, *psutil.Process(process.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def test_nodes_are_started_for_a_run_and_refused_where_none_would_do(tmp_path: Path, address: str) -> None:
    train = ["pretrain", "moco", *TINY, "--epochs=1", "--cpus-per-worker=1", f"--address={address}"]
    time.sleep(5)  # the autoscaler looks for the first time
    refused = run(tmp_path, *train, "--workers=4", env=ENV)
    assert refused.returncode == 2
    assert refused.stderr.startswith("ssl-ray: workers: 4 workers x 1 CPUs need 4 and the data one more, ")
    assert len(refused.stderr.splitlines()) == 1

    done = run(tmp_path, *train, "--workers=2", "--name=grown", env=ENV)
    assert done.returncode == 0, done.stderr
    assert "the cluster grows: 2 workers of 1 CPUs and 0 GPUs wait for nodes\n" in done.stdout
    (last,) = checkpoints(tmp_path / "runs" / "grown")
    assert last


def test_nodes_are_started_for_a_search_and_refused_where_none_would_do(tmp_path: Path, address: str) -> None:
    search = [
        "tune",
        "moco",
        *TINY,
        "--trials=2",
        "--max-epochs=1",
        "--scheduler=random",
        "--cpus-per-worker=1",
    ]
    values = "--search=optimization.base_lr=choice(0.03, 0.01)"
    time.sleep(5)  # the autoscaler looks for the first time
    refused = run(tmp_path, *search, values, "--workers=4", f"--address={address}", env=ENV)
    assert refused.returncode == 2
    assert refused.stderr.startswith("ssl-ray: concurrent: 1 trials x 4 workers of 1 CPUs and 0 GPUs, ")
    assert len(refused.stderr.splitlines()) == 1

    done = run(
        *(tmp_path, *search, values, "--concurrent=2", "--name=grown", f"--address={address}"),
        env=ENV,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert "the cluster grows: 2 trials x 1 workers of 1 CPUs and 0 GPUs wait for nodes\n" in done.stdout
    assert "2 trials of at most 1 epochs, 2 at a time" in done.stdout
