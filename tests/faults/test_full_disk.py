"""A disk that is full while a checkpoint is written: the ones before stay whole, and training goes on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl_ray.training.folder import CHECKPOINTS
from tests.nodes.cluster import UNSHARE, no_namespaces
from tests.runs import TINY, checkpoints, environment, wait_for

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(no_namespaces()), reason=f"no small disk can be made: {no_namespaces()}"),
]

SIZE_MB = 40
ARGUMENTS = [
    *TINY,
    "--epochs=200",
    "--set=training.checkpoint_steps=20",
    "--set=evaluation.every_epochs=null",
    "--storage=small",
    "--name=r",
]


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(2**20))


def test_what_cannot_be_saved_costs_a_warning(tmp_path: Path) -> None:
    """The run has a disk of its own, in a mount namespace of its own; we look into it by its process."""
    (tmp_path / "small").mkdir()
    mount = f"mount -t tmpfs -o size={SIZE_MB}m none small"
    command = [*UNSHARE, "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-m", "ssl_ray.cli"]
    err = tmp_path / "err.txt"
    with open(tmp_path / "out.txt", "w") as out, err.open("w") as said:
        process = subprocess.Popen(
            [*command, "pretrain", "moco", *ARGUMENTS],
            cwd=tmp_path,
            env=environment(tmp_path) | {"SSL_RAY_STORAGE": "", "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=said,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        folder = Path(f"/proc/{process.pid}/root{tmp_path}/small/r")
        wait_for(lambda: checkpoints(folder), "first checkpoint", process)
        filler = folder.parent / "filler"
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        wait_for(lambda: "cannot be saved" in err.read_text(), "warning", process)
        kept = checkpoints(folder)
        assert kept, "the list is whole"
        assert all((folder / name / "checkpoint.pt").exists() for name in kept)
        assert not list(folder.glob(".saving_*/*")), "nothing of it is left"
        filler.unlink()
        until = time.monotonic() + 60
        while checkpoints(folder) == kept and time.monotonic() < until:
            time.sleep(0.2)
        assert checkpoints(folder) != kept, "saved again once there is room"
        process.send_signal(signal.SIGINT)
        wait_for(lambda: "stopped at step" in (tmp_path / "out.txt").read_text(), "end", process)
    finally:
        process.kill()
        process.wait()
    said_all = err.read_text()
    assert "Traceback" not in said_all
    (line, *_) = [line for line in said_all.splitlines() if "cannot be saved" in line]
    assert line.startswith("warning: checkpoint: step ")
    assert line.endswith("MB are free there; training goes on, the last checkpoint is from before")
    assert CHECKPOINTS not in said_all
