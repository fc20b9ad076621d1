"""Real runs of the real command, in a folder of their own."""

import atexit
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

# An address at which no cluster answers: a command that is told of it starts none of its own.
NOBODY = "127.0.0.1:9"
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


def drive(
    cwd: Path, *arguments: str, timeout: float = 400, env: dict[str, str] | None = None, store: bool = True
) -> "subprocess.CompletedProcess[str]":
    """As `run`, but in this process: without the seconds in which a new one imports.

    For runs on a cluster that is there (--address), or none, of which the result is looked at. How the command starts,
    ends and is killed, and what goes past Python to stdout and stderr, is for `run` to see. store: the folder gets an
    MLflow store that is ready, if it has none.
    """
    from ssl_ray import cli

    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized(), (
        "either the fixture `ray_cluster` or runs, not in one file"
    )
    if store and not (cwd / "mlflow.db").exists():
        shutil.copy(migrated_store(), cwd / "mlflow.db")
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        time_limit(timeout),
        environment_of(environment(cwd) | {"RAY_AUTH_MODE": "disabled"} | (env or {})),
        warnings.catch_warnings(),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["ssl-ray", *arguments])
        patch.setattr(sys, "path", sys.path[:])
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)  # as Python does where nobody asks for them
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(["ssl-ray", *arguments], code, out.getvalue(), err.getvalue())


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the main thread, whatever that waits for, when the body takes longer."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def environment_of(variables: dict[str, str]) -> Iterator[None]:
    """This process's environment, whatever the body adds to it."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@functools.cache
def migrated_store() -> Path:
    """An SQLite database with MLflow's tables, which take seconds to make; to be copied."""
    from ssl_ray.tracking.client import connect

    path = Path(tempfile.mkdtemp(prefix="store-")) / "mlflow.db"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    connect(f"sqlite:///{path}")
    return path


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
