"""Runs that end early because someone or something says so: with a checkpoint, or with the reason in one line."""

import signal
from pathlib import Path

import pytest
import torch

from tests.runs import TINY, checkpoints, run, start, wait_for

pytestmark = pytest.mark.slow


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


def test_gradients_that_stay_infinite_end_the_run_in_one_line(tmp_path: Path, two_cpus: str) -> None:
    hopeless = [
        "--set=optimization.base_lr=1e30",
        "--set=optimization.warmup_epochs=0",
        "--set=training.log_steps=1",
    ]
    quick = ["--set=evaluation.every_epochs=null", f"--address={two_cpus}", "--quiet"]
    done = run(tmp_path, "pretrain", "moco", *TINY, *hopeless, *quick)
    assert done.returncode == 2
    *warnings, last = done.stderr.splitlines()
    assert [line.split(":")[2] for line in warnings] == [
        " the gradient is not finite (loss nan); step skipped"
    ] * 3
    assert last.startswith("ssl-ray: the gradient is not finite since step ")
    assert "(3 steps in a row); lower optimization.base_lr" in last
