"""A mistake costs one line and exit status 2, before anything is started or written."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ssl_ray import cli
from ssl_ray.training import local_cluster
from tests.runs import NOBODY

SMALL_BATCH = "--set=training.global_batch_size=32"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder to run in, and a Ray address where nobody answers: who gets as far as that says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str
) -> str:
    """The one line that `ssl-ray pretrain ARGUMENTS` ends with."""
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["ssl-ray", "pretrain", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("ssl-ray: ")
    assert err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before, "nothing was written"
    return err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "ssl-ray list"),
        (["mooc"], "no experiment is called 'mooc'; did you mean 'moco'?"),
        (["moco", "--data=digits", "--scale=smal"], "'smal'; did you mean 'small'?"),
        (["moco", "--data=digits", "--set=training.epoch=3"], "training.epoch: there is no 'epoch'; did you"),
        (["moco", "--data=digits", "--set=algorithm.head.temprature=1"], "did you mean 'temperature'?"),
        (["moco", "--data=digits", "--set=training.epochs=x"], "'x': should be a valid integer"),
        (["moco", "--data=digits", "--set=epochs"], "write path=value"),
        (["moco", "--data=digits", SMALL_BATCH, "--workers=3"], "workers may be 1, 2, 4, 8, 16, 32"),
        (["moco", "--data=no/such"], "no such file or folder: 'no/such'"),
        (["moco", "--data=empty"], "no image in"),
        (
            ["moco", "--data=digits", "--set=training.global_batch_size=9999"],
            "more than the 1297 images of digits",
        ),
        (["moco", "--data=digits", "--holdout=2"], "holdout: got 2.0"),
        (["moco", "--data=digits", "--image-column=x"], "'digits' is not Parquet and has no columns"),
        (["moco", "--data=digits", "--name=../x"], "'../x' is not a run's name"),
        (["moco", "--data=digits", "--storage=foo://x"], "Unrecognized filesystem type in URI: foo://x"),
        (["broken.json"], "broken.json: no JSON"),
        (["empty.json"], "empty.json: recipe: format None is not 1"),
        (["none.json"], "none.json: No such file"),
        (["--resume=nothing"], "no run 'nothing'"),
        (["--resume=nothing", "--seed=1"], "a resumed run keeps its recipe"),
    ],
)
def test_refused(monkeypatch, capsys, elsewhere, arguments, said) -> None:
    (elsewhere / "empty").mkdir()
    (elsewhere / "broken.json").write_text("{")
    (elsewhere / "empty.json").write_text("{}")
    assert said in refused(monkeypatch, capsys, elsewhere, *arguments)


def test_the_reason_is_printed_before_a_cluster_that_has_begun_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That takes seconds."""
    printed: list[str] = []
    monkeypatch.setattr(local_cluster, "end", lambda: printed.append(capsys.readouterr().err))
    monkeypatch.setattr(sys, "argv", ["ssl-ray", "pretrain", "mooc"])
    with pytest.raises(SystemExit):
        cli.main()
    (before,) = printed
    assert before.startswith("ssl-ray: no experiment is called 'mooc'")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "folders"),
    [
        (["pretrain", "mine/r.py", "--data=no/such"], ["", "mine"]),
        (["pretrain", "--resume=nothing"], []),
        (["tune", "mooc"], [""]),
        (["embed", "nothing", "--out=features"], []),
    ],
)
def test_workers_import_from_folders_of_a_recipe_that_the_user_names(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Path, arguments: list[str], folders: list[str]
) -> None:
    """From no folder of this place for the sake of a run or a checkpoint, which may be a stranger's."""
    begun: list[list[str]] = []

    def begin(address: str | None, *, python_path: Sequence[str] = (), verbose: bool) -> None:
        begun.append(list(python_path))

    monkeypatch.setattr(local_cluster, "begin", begin)
    monkeypatch.setattr(sys, "argv", ["ssl-ray", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    assert begun == [[str(elsewhere / folder) for folder in folders]]


@pytest.mark.parametrize(
    ("recipe", "setting", "said"),
    [
        (
            "moco",
            "algorithm.backbone.depth=99",
            "algorithm.backbone.depth = 99: should be 18, 34, 50, 101 or 152",
        ),
        ("moco", "algorithm.backbone.in_channels=1", "algorithm: its parts do not fit"),
        ("mae", "algorithm.backbone.num_heads=5", "num_heads: 5 does not divide the width 96"),
        ("mae", "views.size=30", "patch_size 4 does not divide views.size 30"),
        ("simclr", "views.size=-3", "views.size = -3: should be greater than 0"),
        ("moco", "algorithm.head.temperature=0", "algorithm.head.temperature = 0: should be greater than 0"),
        ("moco", "algorithm.momentum=1.5", "algorithm.momentum = 1.5: should be less than or equal to 1"),
        ("moco", "algorithm.queue_size=0", "algorithm.queue_size = 0: should be greater than 0"),
        ("byol", "views.min_sigma=3", "views.min_sigma: 3 is more than max_sigma 2; lower the one or"),
        ("simclr", "algorithm.pretrained=none.pth", "algorithm.pretrained: none.pth: no such file"),
        (
            "moco",
            "optimization.optimizer.weight_decay=-1.0",
            "optimization.optimizer.weight_decay = -1.0: should be greater than or equal to 0",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_before_ray_starts(
    monkeypatch, capsys, elsewhere, recipe, setting, said
) -> None:
    assert said in refused(monkeypatch, capsys, elsewhere, recipe, "--data=digits", f"--set={setting}")
