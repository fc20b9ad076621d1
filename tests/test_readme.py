"""What README tells people to type works as written."""

import re
import shlex
from pathlib import Path

import pytest

from tests.runs import run

pytestmark = pytest.mark.process

README = (Path(__file__).parents[1] / "README.md").read_text()


def section(title: str) -> str:
    """The text under a heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def write_files(folder: Path, text: str) -> list[str]:
    """Writes each block of Python whose first line names a file."""
    blocks = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for name, code in blocks:
        (folder / name).write_text(code)
    return [name for name, _ in blocks]


def commands(text: str) -> list[list[str]]:
    """The indented `ssl-ray` lines, as a shell reads them."""
    lines = re.findall(r"^    ssl-ray (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.recipes
def test_your_own_algorithm(tmp_path: Path, two_cpus: str) -> None:
    text = section("Your own algorithm")
    assert write_files(tmp_path, text) == ["vicreg.py"]
    typed = commands(text)
    assert [command[0] for command in typed] == ["show", "pretrain", "pretrain"]
    for command in typed:
        done = run(tmp_path, *command, env={"RAY_ADDRESS": two_cpus})
        assert done.returncode == 0, done.stderr
    assert "mine is finished: 20 steps; nothing left to do" in done.stdout


def test_your_own_backbone(tmp_path: Path) -> None:
    assert write_files(tmp_path, section("Recipes")) == ["mine.py"]
    done = run(tmp_path, "show", "mine.py")
    assert done.returncode == 0, done.stderr
    assert "algorithm.backbone = TinyNet" in done.stdout
    assert "algorithm.neck.in_channels = 64  # " in done.stdout, "the neck fits the backbone"
