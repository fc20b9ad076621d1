"""Ray nodes as pods run them: `ray start --block`, ended by SIGTERM."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def clean(home: Path) -> dict[str, str]:
    """This process's environment without what concerns Ray and MLflow, and with the programs of this Python."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "SSL_RAY_"))}
    return kept | {
        "HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "GIT_CEILING_DIRECTORIES": str(home),
    }


@contextmanager
def pod(log: Path, env: dict[str, str], *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`ray start --block OPTIONS`, once it runs; in the end it and all it has started are gone."""
    ports = [f"--{name}={free_port()}" for name in ("dashboard-agent-listen-port", "metrics-export-port")]
    command = ["ray", "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000"]
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*command, *ports, *options], env=env, stdout=said, stderr=subprocess.STDOUT
        )
    started: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        for left in [process, *started]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                left.kill()
        process.wait()
