"""What a run's end says, keeps and leaves behind, piece by piece; whole runs are in tests/faults/test_ends.py."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import ray.train
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from ssl_ray.console import Console
from ssl_ray.errors import UserError
from ssl_ray.training.failures import cause
from ssl_ray.training.folder import RunFolder
from ssl_ray.training.pretrain import telling
from ssl_ray.training.trainer import Retries
from ssl_ray.training.watchdog import silence


def failed(**ranks: Exception) -> ray.train.WorkerGroupError:
    return ray.train.WorkerGroupError("failed", {int(name[1:]): error for name, error in ranks.items()})


def test_what_a_user_has_to_mend_is_not_tried_again() -> None:
    policy = Retries(FailureConfig(max_failures=2))
    assert policy.make_decision(failed(r0=RuntimeError("x"))) is FailureDecision.RETRY
    assert policy.make_decision(failed(r1=UserError("x"), r0=RuntimeError("y"))) is FailureDecision.RAISE
    assert policy.make_decision(failed(r0=RuntimeError("x"))) is FailureDecision.RETRY
    assert policy.make_decision(failed(r0=RuntimeError("x"))) is FailureDecision.RAISE, (
        "as often as is allowed"
    )


def test_a_worker_may_be_silent_for_a_while() -> None:
    assert silence(10.0) == 600
    assert silence(0.1) == 30
    assert silence(None) == math.inf
    said = cause(WorkerHealthCheckTimeoutError("A worker health check has been hanging for 30.12 seconds."))
    assert said.startswith("it did not answer within training.hang_minutes")


def test_the_reason_is_the_last_line_and_is_said_once() -> None:
    err = io.StringIO()
    console = Console("quiet", out=io.StringIO(), err=err)
    error = UserError("mend\nthis at s3://me:secret@bucket")
    console.fail(error)
    console.fail(error)
    assert err.getvalue().splitlines() == ["ssl-ray: mend this at s3://***@bucket"]
    console.warn("MLflow is away")
    console.fail(error)
    assert err.getvalue().splitlines()[1:] == [
        "warning: MLflow is away",
        "ssl-ray: mend this at s3://***@bucket",
    ]
    assert error.said


def test_a_fault_of_our_own_is_a_line_and_a_file(tmp_path: Path) -> None:
    folder = RunFolder.at(str(tmp_path), "mine")
    err = io.StringIO()
    with pytest.raises(UserError) as caught, telling(folder, Console(out=io.StringIO(), err=err)):
        json.loads("{")
    (line,) = err.getvalue().splitlines()
    assert line == f"ssl-ray: {caught.value}"
    assert line.startswith("ssl-ray: JSONDecodeError: Expecting property name")
    assert line.endswith(f"continue with `ssl-ray pretrain --resume {tmp_path}/mine`")
    assert f"its traceback in {tmp_path}/mine/error.txt" in line
    kept = (tmp_path / "mine" / "error.txt").read_text()
    assert "Traceback" in kept
    assert 'json.loads("{")' in kept


def test_what_continues_a_run_is_what_began_it(tmp_path: Path) -> None:
    folder = RunFolder.at(str(tmp_path), "mine")
    folder.create()
    for record, command in (
        ({}, f"ssl-ray pretrain --resume {tmp_path}/mine"),
        ({"search": "s"}, f"ssl-ray tune --resume {tmp_path}"),
        ({"command": "ssl-ray evaluate moco"}, "ssl-ray evaluate moco"),
    ):
        folder.write("run.json", record)
        assert folder.command == command


PARENT = """
import subprocess, sys, time
from ssl_ray.training import local_cluster
local_cluster.adopt_orphans()
stopped = "import os, signal; print(flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
middle = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stopped!r}])"
orphan = subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE)
orphan.stdout.readline()
orphan.wait()
began = time.monotonic()
local_cluster.end_processes([], patience=0.2)
import psutil
left = [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]
print(len(left), time.monotonic() - began < 5)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a process whose parent is gone belongs to nobody"
)
@pytest.mark.process
def test_processes_of_a_cluster_are_ended_also_orphans_that_are_stopped() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "True"], done.stderr
