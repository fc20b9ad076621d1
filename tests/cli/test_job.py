"""`ray job submit ... -- ssl-ray pretrain ...` on a real head with a real job server."""

import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.pods import clean, free_port, pod
from tests.runs import TINY, checkpoints

pytestmark = pytest.mark.cluster


@contextmanager
def head(home: Path, auth: dict[str, str]) -> Iterator[dict[str, str]]:
    """`ray start --head` with the job server, on loopback. Yields the environment of someone who submits to it."""
    env = clean(home) | auth
    dashboard = free_port()
    short = tempfile.mkdtemp(prefix="r", dir="/tmp")  # the paths of sockets have to be short
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    options = ["--head", "--num-cpus=2", f"--port={free_port()}", f"--dashboard-port={dashboard}"]
    options += [f"--ray-client-server-port={free_port()}", f"--temp-dir={short}"]
    try:
        with pod(home / "head.txt", env | loopback, *options):
            yield env | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        shutil.rmtree(short, ignore_errors=True)


def ray(cwd: Path, env: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["ray", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False
    )


def tags(store: Path) -> dict[str, str]:
    with sqlite3.connect(store) as connection:
        return dict(connection.execute("select key, value from tags").fetchall())


def test_a_job_is_followed_to_its_end_with_a_token(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    address = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f00dfeedf00dfeedf00dfeedf00dfeed"}
    with head(tmp_path, address) as env:
        submit = ["job", "submit", "--address", env["RAY_API_SERVER_ADDRESS"], "--working-dir", "."]
        entrypoint = ["ssl-ray", "pretrain", "moco", *TINY, "--steps=12", "--name=sent"]
        done = ray(code, env, *submit, "--submission-id=first", "--", *entrypoint)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert "moco: step 12/12 epoch 1/" in said
        assert "Traceback" not in said
        assert env["RAY_AUTH_TOKEN"] not in said
        # The working directory is a copy, deleted with the job: what is to be kept lies in the home directory.
        assert f"run:    {tmp_path}/runs/sent" in said
        assert len(checkpoints(tmp_path / "runs" / "sent")) == 1
        assert tags(tmp_path / "mlflow.db")["ray.submission_id"] == "first"

        wrong = ray(code, env, *submit, "--", "ssl-ray", "pretrain", "moko")
        assert wrong.returncode == 1
        assert "did you mean 'moco'" in wrong.stdout + wrong.stderr


def test_a_job_that_is_stopped_leaves_a_checkpoint(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    with head(tmp_path, {"RAY_AUTH_MODE": "disabled"}) as env:
        (tmp_path / "env.yaml").write_text('env_vars: {RAY_JOB_STOP_WAIT_TIME_S: "60"}')
        entrypoint = ["ssl-ray", "pretrain", "moco", *TINY, "--epochs=900", "--name=long"]
        quick = ["--set=evaluation.every_epochs=null"]
        options = ["--no-wait", "--working-dir=.", "--runtime-env=../env.yaml", "--submission-id=long"]
        assert ray(code, env, "job", "submit", *options, "--", *entrypoint, *quick).returncode == 0
        deadline = time.monotonic() + 240
        while "moco: step" not in (log := ray(tmp_path, env, "job", "logs", "long").stdout):
            assert time.monotonic() < deadline, log
            time.sleep(1)
        stopped = ray(tmp_path, env, "job", "stop", "long")
        assert stopped.returncode == 0, stopped.stderr
        log = ray(tmp_path, env, "job", "logs", "long").stdout
        assert "stopping at the next look, with a checkpoint" in log
        assert "Traceback" not in log

    folder = tmp_path / "runs" / "long"
    (last,) = checkpoints(folder)
    step = torch.load(folder / last / "checkpoint.pt", weights_only=True)["next_step"]
    assert f"stopped at step {step}; continue with:" in log
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("KILLED",)]
