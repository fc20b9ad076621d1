"""A URI with a password in it: refused by every verb that takes one, and never shown."""

import sys
from pathlib import Path

import pytest

from ssl_ray.cli import main
from tests.runs import NOBODY

KEY, SECRET = "AKIAIOSFODNN7", "wJalrXUtn/K7MDENG"
URI = f"s3://{KEY}:{SECRET}@bucket/run"


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "verify", URI],
        ["data", "prepare", "digits", "--out", URI],
        ["data", "preview", "moco", "--data", URI],
        ["show", "moco", "--data", URI],
        ["pretrain", "moco", "--data", URI],
        ["pretrain", "moco", "--storage", URI],
        ["pretrain", "moco", "--data", "digits", "--set", f"algorithm.pretrained={URI}"],
        ["pretrain", "--resume", URI],
        ["tune", "moco", "--storage", URI, "--dry-run"],
        ["tune", "--resume", URI],
        ["embed", URI, "--out", "features"],
        ["embed", "run", "--out", URI],
        ["evaluate", URI],
        ["evaluate", "run", "--storage", URI],
        ["export", URI, "--format", "timm"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(URI, "URI"),
)
def test_credentials_in_a_uri_are_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    monkeypatch.setattr(sys, "argv", ["ssl-ray", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "s3://***@bucket/run" in said.err
    assert "holds credentials; put them into the environment" in said.err
    assert len(said.err.splitlines()) == 1
    assert KEY not in said.out + said.err
    assert SECRET not in said.out + said.err
    assert [
        path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()
    ] == []


def test_a_uri_where_a_file_is_wanted_is_not_shown_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ssl-ray", "import", URI])
    with pytest.raises(SystemExit):
        main()
    assert "***@bucket/run: no such file" in (said := capsys.readouterr().err)
    assert KEY not in said
