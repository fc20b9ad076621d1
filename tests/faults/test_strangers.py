"""A run on this machine is nobody else's: it listens to this machine alone, keeps secrets, runs no stranger's code."""

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.runs import TINY, checkpoints, run, start, wait_for
from tests.test_security import PROOF, evil_bytes

pytestmark = pytest.mark.process

SECRET = "planted-5ecr3t"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}-aws",
    "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-mlflow",
    "MLFLOW_TRACKING_TOKEN": f"{SECRET}-token",
    "HF_TOKEN": f"{SECRET}-hf",
}
LOOPBACK = ("127.", "::1", "::ffff:127.")


def listening(root: psutil.Process) -> set[tuple[str, str]]:
    """(process, address) of every TCP socket on which it or a descendant takes calls."""
    found = set()
    for process in [root, *root.children(recursive=True)]:
        try:
            found |= {
                (process.name(), socket.laddr.ip)
                for socket in process.net_connections("tcp")
                if socket.status == psutil.CONN_LISTEN
            }
        except psutil.Error:  # it has just ended
            continue
    return found


def git_repository(folder: Path) -> None:
    """With a commit, and a remote whose address holds a token."""

    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=folder, check=True
        )

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    git("remote", "add", "origin", f"https://user:{SECRET}-git@example.com/mine.git")


def test_a_run_of_its_own_cluster_then_a_stranger_s_checkpoint(tmp_path: Path, two_cpus: str) -> None:
    git_repository(tmp_path)
    quick = ["--set=evaluation.every_epochs=null", "--epochs=4", "--name=mine"]
    process = start(tmp_path, "pretrain", "moco", *TINY, *quick, env=SECRETS)
    err = tmp_path / "err.txt"
    wait_for(lambda: "step " in err.read_text(), "first reading", process)
    heard = listening(psutil.Process(process.pid))
    try:
        assert process.wait(timeout=120) == 0, err.read_text()
    finally:
        process.kill()
    assert any("raylet" in name for name, _ in heard)
    assert any("gcs_server" in name for name, _ in heard)
    # Torch's store, in which workers find each other, listens everywhere; it cannot be told otherwise.
    elsewhere = {name for name, ip in heard if not ip.startswith(LOOPBACK)}
    assert elsewhere <= {"ray::RayTrainWorker"}

    token = (tmp_path / ".ray" / "auth_token").read_text().strip()
    assert token
    for file in tmp_path.rglob("*"):
        if file.is_file() and not {".git", ".ray"} & set(file.relative_to(tmp_path).parts):
            content = file.read_bytes()
            assert SECRET.encode() not in content, file
            assert token.encode() not in content, file

    last = tmp_path / "runs" / "mine" / checkpoints(tmp_path / "runs" / "mine")[-1] / "checkpoint.pt"
    last.write_bytes(evil_bytes())
    (tmp_path / "evil.pth").write_bytes(evil_bytes())
    there = [f"--address={two_cpus}", "--quiet"]
    for arguments in (
        ["pretrain", "--resume=mine", "--steps=150", *there],
        ["pretrain", "moco", *TINY, "--set=algorithm.pretrained=evil.pth", *there],
    ):
        done = run(tmp_path, *arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "others are not read because they can run code" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob(PROOF))
    assert not Path(os.getcwd(), PROOF).exists()
