"""Real runs of the real command, in a folder of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The smallest MoCo that is still MoCo: seconds on one core.
TINY = [
    "--data=digits",
    "--set=views.size=16",
    "--set=algorithm.backbone.width=8",
    "--set=algorithm.neck.in_channels=64",
    "--set=training.global_batch_size=32",
    "--set=training.log_steps=5",
    "--set=training.checkpoint_minutes=null",
    "--set=algorithm.queue_size=256",
    "--set=evaluation.max_samples=200",
]


def environment(cwd: Path) -> dict[str, str]:
    """This process's, with a home and a Ray token of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return kept | {"HOME": str(cwd), "GIT_CEILING_DIRECTORIES": str(cwd)}


def start(cwd: Path, *arguments: str, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    """`ssl-ray ARGUMENTS` in `cwd`, not waited for; its output goes to files there."""
    with open(cwd / "out.txt", "a") as out, open(cwd / "err.txt", "a") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "ssl_ray.cli", *arguments],
            cwd=cwd,
            env=environment(cwd) | (env or {}),
            stdout=out,
            stderr=err,
            text=True,
            # What starts us may ignore Ctrl-C (a shell does, for what runs in its background), and children inherit it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def run(
    cwd: Path, *arguments: str, timeout: float = 240, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """`ssl-ray ARGUMENTS` in `cwd`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "ssl_ray.cli", *arguments],
        cwd=cwd,
        env=environment(cwd) | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def summary(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The line of JSON that a run with --json ends with."""
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def checkpoints(folder: Path) -> list[str]:
    """Registered checkpoints of a run, oldest first; none while Ray Train is writing the list anew."""
    snapshot = folder / "checkpoint_manager_snapshot.json"
    try:
        results = json.loads(snapshot.read_text())["checkpoint_results"]
    except (FileNotFoundError, json.JSONDecodeError):
        return []
    return [result["checkpoint_dir_name"] for result in results]


def state(checkpoint: str | Path) -> dict[str, Tensor]:
    """The algorithm's state dict in a checkpoint."""
    tensors: dict[str, Tensor] = torch.load(Path(checkpoint) / "checkpoint.pt", weights_only=True)[
        "algorithm"
    ]
    return tensors


def wait_for(
    condition: Callable[[], Any], what: str, process: "subprocess.Popen[str]", timeout: float = 180
) -> None:
    """Polls until the condition holds; fails when the process ends first or time runs out."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < deadline, f"no {what} within {timeout} s"
        time.sleep(0.05)
