"""Runs that end early because someone or something says so: with a checkpoint, or with the reason in one line."""

import json
import signal
import sqlite3
from pathlib import Path

import pytest
import torch

from tests.runs import TINY, checkpoints, run, start, wait_for

pytestmark = pytest.mark.process


def test_ctrl_c_ends_with_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, two_cpus: str) -> None:
    arguments = ["--epochs=500", "--set=evaluation.every_epochs=null", "--name=long", f"--address={two_cpus}"]
    process = start(tmp_path, "pretrain", "moco", *TINY, *arguments)
    err = tmp_path / "err.txt"
    wait_for(lambda: "step " in err.read_text(), "first reading", process)
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=120) == 130, err.read_text()
    finally:
        process.kill()
    assert "stopping at the next look, with a checkpoint" in err.read_text()
    assert "Traceback" not in err.read_text()

    folder = tmp_path / "runs" / "long"
    (last,) = checkpoints(folder)
    step = torch.load(folder / last / "checkpoint.pt", weights_only=True)["next_step"]
    out = (tmp_path / "out.txt").read_text()
    assert f"stopped at step {step}; continue with:\n  ssl-ray pretrain --resume {folder}\n" in out


# SwAV whose codes nothing shares out: soon one prototype holds all images.
UNBALANCED = """
from ssl_ray.models import SwAVLoss


class Unbalanced(SwAVLoss):
    def codes(self, scores, queued=None, use_queue=None):
        return (scores[:, list(self.crops_for_assign)] / self.epsilon).softmax(-1)
"""
ONE_CLUSTER = [
    "--data=digits",
    "--set=algorithm.head.loss=unbalanced.Unbalanced(temperature=0.1, epsilon=0.03)",
    "--set=algorithm.backbone.width=8",
    "--set=algorithm.neck.in_channels=64",
    "--set=algorithm.queue_size=0",
    "--set=algorithm.freeze_prototypes_epochs=0",
    "--set=views.size=16",
    "--set=views.small_size=12",
    "--set=training.checkpoint_minutes=null",
    "--set=evaluation.max_samples=200",
    "--set=evaluation.every_epochs=1",
]


def test_a_collapse_ends_the_run_where_that_is_asked_for(tmp_path: Path, two_cpus: str) -> None:
    (tmp_path / "unbalanced.py").write_text(UNBALANCED)
    there = f"--address={two_cpus}"
    stop = ["--set=evaluation.on_collapse=stop", "--epochs=9", "--name=one", "--json"]
    done = run(tmp_path, "pretrain", "swav", *ONE_CLUSTER, *stop, there)
    assert done.returncode == 3, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["status"] == "collapsed"
    assert 0 < summary["steps"] < 9 * 20
    (alarm,) = summary["alarms"]
    assert alarm.startswith(f"cluster collapse since step {summary['steps']} (not yet at step ")
    assert "one cluster holds" in alarm
    assert alarm in done.stderr
    assert "Traceback" not in done.stderr

    last = torch.load(Path(summary["checkpoint"]) / "checkpoint.pt", weights_only=True)
    assert last["next_step"] == summary["steps"]
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("FAILED",)]
        assert store.execute("select value from tags where key = 'collapse'").fetchall() == [(alarm,)]
        counts = store.execute(
            "select value from metrics where key = 'collapse/alarms' order by step"
        ).fetchall()
        assert [count for (count,) in counts] == [0] * (len(counts) - 1) + [1]
