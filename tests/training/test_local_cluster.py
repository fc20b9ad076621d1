"""A command's own cluster: beside it from its first moment, and gone with it however it ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.failing_runs import left_of, watched
from benchmarks.startup import MARK
from ssl_ray.training import local_cluster
from ssl_ray.training.local_cluster import LocalCluster, own_modules, with_own
from tests.runs import environment

pytestmark = [pytest.mark.process, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

CONNECTED = """
import sys, time
from ssl_ray.training import cluster, local_cluster
local_cluster.begin(None, verbose=False)
cluster.connect(None, verbose=False)
import ray

@ray.remote
def works(seconds):
    time.sleep(seconds)
    return local_cluster.here()

print(ray.get(works.remote(0)), len(ray.nodes()), flush=True)
works.remote(1000)
time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_its_command(number: signal.Signals, tmp_path: Path) -> None:
    """Also with one that is killed, and cannot say so; a task is at work."""
    with subprocess.Popen(
        [sys.executable, "-c", CONNECTED],
        env=environment(tmp_path) | {MARK: str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        watch = watched(process, str(tmp_path))
        try:
            assert process.stdout is not None
            assert process.stdout.readline().split() == ["True", "1"]
            process.send_signal(number)
            process.wait(timeout=60)
            deadline = time.monotonic() + 60
            while watch.look() and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            process.kill()
        assert left_of(watch) == []


def test_one_that_never_began_is_ended_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    cluster = LocalCluster("", verbose=False)
    time.sleep(1.5)  # Ray's first processes may be there, or none yet
    before = time.monotonic()
    cluster.end()
    assert time.monotonic() - before < local_cluster.END_S
    assert not local_cluster.here()
    assert cluster._process.returncode == 0


def test_its_address_is_awaited_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process says last is the reason."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    cluster = LocalCluster("", verbose=False)
    with pytest.raises(RuntimeError, match="file"):
        cluster.address()
    cluster.end()


def test_folders_of_own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    assert own_modules("moco") == own_modules(None) == [str(tmp_path)]
    assert own_modules("mine/r.py:SMALL") == [str(tmp_path), str(tmp_path / "mine")]
    assert with_own(["/a", "/b"]) == "/a:/b:/theirs"
    assert with_own([]) == ""
