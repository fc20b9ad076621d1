"""`ssl-ray runs` and `ssl-ray report` on real runs: with labels and without, and when things are gone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from sklearn.datasets import load_digits

from ssl_ray import cli
from tests.runs import TINY, drive, summary
from tests.trained.test_page import read

STEPS = 12
SETTINGS = ["--set=training.log_steps=2", "--epochs=2", f"--steps={STEPS}", "--json"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, two_cpus: str) -> Path:
    """A folder with two runs: MoCo on digits with classes (one of them with an odd name), MAE on some without."""
    folder = tmp_path_factory.mktemp("here")
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:400], digits.target, strict=False)):
        pixels = cv2.resize(image.astype("uint8") * 16, (20, 20))
        for path in (folder / "classes" / f"<b>{label}" / f"{i:03}.png", folder / "plain" / f"{i:03}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    moco = [*(s for s in TINY if "--data" not in s), "--data=classes", "--name=moco-a", *SETTINGS]
    mae = [
        "--data=plain",
        "--set=views.size=16",
        "--set=training.global_batch_size=32",
        "--name=mae-b",
        *SETTINGS,
    ]
    for arguments in (["moco", *moco], ["mae", *mae]):
        summary(drive(folder, "pretrain", *arguments, f"--address={two_cpus}"))
    return folder


@pytest.fixture
def typed(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What `ssl-ray ARGUMENTS`, typed in that folder, prints; in this process, for MLflow takes seconds to import."""
    monkeypatch.chdir(here)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)

    def type_(*arguments: str) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["ssl-ray", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert not end.value.code, said.err
        return said.out

    return type_


def test_the_runs_are_listed(typed) -> None:
    head, _, *rows = typed("runs").splitlines()
    assert head == "Runs of ssl-ray"
    assert [row.split()[:4] for row in rows] == [
        ["mae-b", "finished", "mae", "plain"],
        ["moco-a", "finished", "moco", "classes"],
    ]
    assert typed("runs", "list").splitlines()[2:] == rows
    assert typed("runs", "--algorithm=moco", "--where=training.epochs=2").splitlines()[2:] == [
        line.rstrip() for line in typed("runs", "--data=classes").splitlines()[2:]
    ]
    assert json.loads(typed("runs", "--status=failed", "--json")) == []
    listed = json.loads(typed("runs", "--json", "--limit=1", "--sort=name"))
    assert [r["run"] for r in listed] == ["mae-b"]
    assert "(1 of 2; --limit 0 for all)" in typed("runs", "--limit=1")


def test_one_run_is_shown_and_two_are_compared(typed, here: Path) -> None:
    shown = json.loads(typed("runs", "show", "moco", "--json"))
    assert shown["run"] == "moco-a"
    assert shown["folder"] == str(here / "runs" / "moco-a")
    for by in (shown["run_id"], shown["run_id"][:8]):
        assert json.loads(typed("runs", "show", by, "--json")) == shown
    text = typed("runs", "show", "moco-a", "--params")
    assert "algorithm.head.temperature" in text
    assert f"{shown['metrics']['train/loss']:.6g}" in text
    compared = json.loads(typed("runs", "compare", "moco-a", "mae-b", "--json"))
    assert compared["differing_params"]["name"] == ["moco", "mae"]
    assert "training.epochs" not in compared["differing_params"]
    assert "train/loss" in typed("runs", "compare", "moco-a", "mae-b")
    (best,) = json.loads(typed("runs", "best", "--json"))
    assert best["run"] == "moco-a", "the other has no labels"


@pytest.mark.process
def test_runs_import_neither_torch_nor_ray(here: Path) -> None:
    code = (
        "import sys; sys.argv = ['ssl-ray', 'runs', '--json']\n"
        "from ssl_ray.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('torch', 'ray', 'cv2', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    listed, imported = done.stdout.splitlines()
    assert len(json.loads(listed)) == 2
    assert imported == "[]"


def test_a_report_with_labels(typed, here: Path) -> None:
    said = json.loads(typed("report", "moco-a", "--images=60", "--json"))
    assert said["report"] == str(here / "runs" / "moco-a" / "report.html")
    assert said["notes"] == {}
    page = read(Path(said["report"]).read_text())
    text = "".join(page.text)
    for section in (
        "Training loss",
        "kNN top-1",
        "Images per second",
        "Views as",
        "Nearest neighbours",
        "Map of",
        "t-SNE",
    ):
        assert section in text, section
    assert "Reconstructions" not in text
    assert "<b>3" in text, "a class name is text"
    assert page.tags.count("image") == 1, "thumbnails"
    copy = list((here / "mlruns").rglob("report/report.html"))
    assert [c.read_bytes() for c in copy] == [Path(said["report"]).read_bytes()], "an artifact of the run"


def test_a_report_without_labels(typed, here: Path) -> None:
    out = here / "page.html"
    typed("report", "runs/mae-b", "--images=60", f"--out={out}")
    text = "".join(read(out.read_text()).text)
    for section in ("Reconstructions", "hidden patches filled in", "Nearest neighbours", "t-SNE"):
        assert section in text, section
    assert "kNN" not in text
    assert "✗" not in text


def test_a_report_of_both(typed, here: Path) -> None:
    said = json.loads(typed("report", "moco-a", "mae-b", "moco-a", "--images=40", "--json"))
    assert said["runs"] == ["moco-a", "mae-b"]
    assert said["report"] == str(here / "runs" / "moco-a" / "comparison.html")
    text = "".join(read(Path(said["report"]).read_text()).text)
    assert "2 runs compared" in text
    assert "What differs in the recipes" in text


def test_what_is_gone_is_said(typed, here: Path) -> None:
    """Last of all, for it takes the data, then the checkpoints, then the folder away."""
    run_folder = here / "runs" / "moco-a"
    (here / "classes").rename(here / "elsewhere")
    said = json.loads(typed("report", "moco-a", "--json"))
    assert said["notes"]["moco-a"][0].startswith("The data is gone: data: no such file or folder")
    page = read(Path(said["report"]).read_text())
    text = "".join(page.text)
    assert "The data is gone" in text
    assert "Training loss" in text
    assert "As logged when the run began" in text, "the views that MLflow has"
    assert sum(f.startswith("data:image/webp") for f in page.fetched) == 1

    (here / "elsewhere").rename(here / "classes")
    next((here / "classes").rglob("*.png")).unlink()
    assert "is not what it was" in json.loads(typed("report", "moco-a", "--json"))["notes"]["moco-a"][0]

    (here / "runs" / "mae-b" / "checkpoint_manager_snapshot.json").unlink()
    said = json.loads(typed("report", "mae-b", "--json"))
    assert said["notes"]["mae-b"] == ["The run has no checkpoint yet: no features, neighbours or map."]
    assert "Views as the network sees them" in "".join(read(Path(said["report"]).read_text()).text)

    shutil.rmtree(run_folder)
    said = json.loads(typed("report", "moco-a", "--json"))
    assert said["report"] == str(here / "moco-a-report.html")
    assert "is not there" in said["notes"]["moco-a"][0]
    text = "".join(read(Path(said["report"]).read_text()).text)
    assert "Training loss" in text
    assert "algorithm.backbone.depth" in text


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["ssl-ray", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("arguments", [["runs"], ["runs", "best"], ["runs", "show", "x"], ["report", "x"]])
def test_where_no_run_was_ever_made(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "no runs yet: " in refused(monkeypatch, capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_compare_takes_two(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "name two runs or more" in refused(monkeypatch, capsys, "runs", "compare", "x")


def test_an_option_before_the_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--json", "--limit=3"):
        said = refused(monkeypatch, capsys, "runs", option, "list")
        assert f"write `ssl-ray runs list {option.partition('=')[0]} ...`" in said


def test_too_many_runs_for_one_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "9 runs; a page has room for 8" in refused(monkeypatch, capsys, "report", *"abcdefghi")
