"""What the verbs say of data with splits: the same words everywhere, before anything starts."""

import json
import sys
from pathlib import Path

import pytest

from ssl_ray.cli import main
from tests.data.test_layout import split, write
from tests.runs import NOBODY

LINE = (
    "photos: 12 images to train on (train), 6 images held out (valid), not used: test (6 images); "
    "2 classes (cat, dog)"
)
FITTING = ("--data=photos", "--set=training.global_batch_size=8", "--set=evaluation.k=3")
NOTE = "ignored 1 files that are not images by suffix (cat/notes.txt)"
WARNING = "warning: not used, as of no split: 'masks' (6 images)"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = write(tmp_path / "photos", *split("train"), *split("valid"), *split("test"), "masks", count=6)
    for part in ("valid", "test"):
        for file in root.glob(f"{part}/*/[3-5].png"):
            file.unlink()
    (root / "train" / "cat" / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    return root


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["ssl-ray", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "verify", "photos"],
        ["data", "prepare", "photos", "--out", "shards"],
        ["data", "preview", "moco", "--data", "photos", "--images", "2"],
        ["show", "simclr", *FITTING],
        ["tune", "simclr", *FITTING, "--dry-run", "--cluster=cpus=8"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_verb_says_splits_classes_and_what_is_ignored(
    photos: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, *arguments) in (0, None)
    said = capsys.readouterr()
    lines = [line.removeprefix("# ") for line in said.out.splitlines()]
    assert any(line.endswith(LINE) for line in lines), said.out
    assert NOTE in lines
    assert WARNING in said.err.splitlines()


def test_verify_decodes_what_a_run_leaves_alone_too(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "test" / "dog" / "1.png").write_bytes(b"broken")
    assert typed(monkeypatch, "data", "verify", "photos", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["checked"] == 12 + 6 + 6
    assert [path for _, path, _ in found["broken"]] == [str(photos / "test" / "dog" / "1.png")]


@pytest.mark.parametrize(
    "verb", [["pretrain", "simclr", "--data"], ["data", "verify"], ["show", "moco", "--data"]]
)
def test_what_cannot_be_told_is_refused_before_anything_starts(
    photos: Path, verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "valid").rename(photos / "more")
    (photos / "test").rename(photos / "rest")
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    assert typed(monkeypatch, *verb, "photos") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ssl-ray: data: ")
    assert "holds 'train' beside 'masks', 'more', 'rest': splits or classes?" in line
    assert f"such as --data {photos}/train" in line
