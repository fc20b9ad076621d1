"""SMALL recipes of each kind take two steps through the real command and Ray: several crops, clusters, masks.

All of them take their steps in tests/training/test_every_recipe.py, without either.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.runs import environment

pytestmark = [pytest.mark.process, pytest.mark.recipes]

NAMES = ("swav", "deepcluster", "cae")

# One process for all: each of its own would import torch, Ray and MLflow anew.
COMMANDS = """
import sys
from ssl_ray import cli

for name in sys.argv[2:]:
    few = ["--steps=2", "--set=training.log_steps=1", "--set=evaluation.every_epochs=null", "--name", name]
    sys.argv = ["ssl-ray", "pretrain", name, *few, "--json", "--address", address]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, f"{name} ended with status {end.code}"
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, two_cpus: str) -> dict[str, dict[str, Any]]:
    """What each run says of itself."""
    folder = tmp_path_factory.mktemp("recipes")
    done = subprocess.run(
        [sys.executable, "-c", f"address = {two_cpus!r}\n{COMMANDS}", "", *NAMES],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    summaries = map(json.loads, done.stdout.splitlines())
    return {summary["run"]: summary for summary in summaries}


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name: str, said: dict[str, dict[str, Any]]) -> None:
    summary = said[name]
    assert (summary["status"], summary["steps"], summary["broken_images"]) == ("finished", 2, 0)
    recipe = json.loads((Path(summary["folder"]) / "recipe.json").read_text())
    assert recipe["name"] == name
    assert (Path(summary["checkpoint"]) / "checkpoint.pt").stat().st_size > 0
