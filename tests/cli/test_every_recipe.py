"""Every SMALL recipe takes two steps through the real command and Ray."""

import json
from pathlib import Path

import pytest

from ssl_ray import experiments
from tests.runs import run, summary

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.mark.parametrize("name", experiments.names())
def test_two_steps(name: str, tmp_path: Path, two_cpus: str) -> None:
    few = ["--steps=2", "--set=training.log_steps=1", "--set=evaluation.every_epochs=null", "--name=r"]
    done = run(tmp_path, "pretrain", name, *few, "--json", f"--address={two_cpus}")
    said = summary(done)
    assert done.stderr == ""
    assert (said["status"], said["steps"], said["broken_images"]) == ("finished", 2, 0)
    assert json.loads((tmp_path / "runs" / "r" / "recipe.json").read_text())["name"] == name
