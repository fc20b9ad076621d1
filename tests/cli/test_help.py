import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from rich.text import Text

import ssl_ray
from ssl_ray.cli.app import app

PROGRAM = Path(sys.executable).with_name("ssl-ray")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.process
def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['ssl-ray', '--help']; from ssl_ray.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "ssl_ray.cli.app" in imported
    heavy = {"torch", "ray", "mlflow", "numpy", "pydantic", "pyarrow", "cv2"}
    assert not imported & heavy
    for verb in ("pretrain", "list", "show", "runs", "version"):
        assert re.search(rf"\b{verb}\b", done.stdout)


def help_texts(command: typer.core.TyperCommand | typer.core.TyperGroup) -> Iterator[str]:
    yield command.help or ""
    yield from (getattr(parameter, "help", None) or "" for parameter in command.params)
    for below in getattr(command, "commands", {}).values():
        yield from help_texts(below)


def test_no_part_of_a_help_text_is_taken_for_markup() -> None:
    texts = list(help_texts(typer.main.get_command(app)))
    assert len(texts) > 100
    assert [text for text in texts if Text.from_markup(text).plain != text] == []


@pytest.mark.process
def test_defaults_in_words_are_shown() -> None:
    done = run("pretrain", "--help")
    assert "(RAY_ADDRESS, else this machine)" in " ".join(re.findall(r"[^\s│]+", done.stdout))


@pytest.mark.process
def test_version() -> None:
    assert run("version").stdout == run("--version").stdout == f"ssl-ray {ssl_ray.__version__}\n"


@pytest.mark.process
def test_unknown_verb() -> None:
    done = run("pretrian")
    assert done.returncode == 2
    assert "pretrian" in done.stderr
