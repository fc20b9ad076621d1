"""Real stores: SQLite in a temporary folder, and an `mlflow server` in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ssl_ray.tracking import TrackingSettings, TrackingTarget, tracking_settings
from ssl_ray.tracking.client import connect


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """An SQLite store whose tables exist: creating them takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def settings(database, tmp_path, monkeypatch) -> TrackingSettings:
    """Settings of a run with its own folder in the shared store, in an experiment of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    return tracking_settings(tmp_path / "run", uri=f"sqlite:///{database}")


@pytest.fixture
def closed_port():
    """A port of this host on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def history(target: TrackingTarget, key: str) -> list[tuple[int, float]]:
    """(step, value) of a metric, as the store has them."""
    return [(m.step, m.value) for m in connect(target.uri).get_metric_history(target.run_id, key)]


class Server:
    """`mlflow server` on loopback; a stop and a start leave it on the same port and store."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.uri = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = self._spawn(log)
        deadline = time.monotonic() + 150
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "mlflow server did not start"
            time.sleep(0.3)

    def _spawn(self, log) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server"),
                *("--host=127.0.0.1", f"--port={self.port}", "--workers=1"),
                f"--backend-store-uri=sqlite:///{self.folder / 'server.db'}",
                f"--artifacts-destination={self.folder / 'artifacts'}",
            ],
            cwd=self.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its workers are stopped and killed with it
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(20)
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(tmp_path_factory.mktemp("server"), port)
    server.start()
    yield server
    server.kill()
