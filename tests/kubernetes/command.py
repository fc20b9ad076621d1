"""`ssl-ray cluster manifest` in this process."""

import shlex
import sys
from typing import Any

import pytest
import yaml

from ssl_ray import cli


def printed(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints; it starts with `ssl-ray`."""
    program, *arguments = shlex.split(command)
    assert program == "ssl-ray"
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    return said.out


def manifest(
    options: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """The object that `ssl-ray cluster manifest OPTIONS` prints."""
    made: dict[str, Any] = yaml.safe_load(printed(f"ssl-ray cluster manifest {options}", monkeypatch, capsys))
    return made
