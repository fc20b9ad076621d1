"""A run is continued from any folder, and after its images, its store or all of it have moved."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ssl_ray import cli
from ssl_ray.console import Console
from ssl_ray.data.prepare import prepare_dataset
from ssl_ray.data.source import open_dataset
from ssl_ray.errors import UserError
from ssl_ray.experiments import load
from ssl_ray.recipe import overrides, parse_settings
from ssl_ray.resolve import resolve
from ssl_ray.tracking import StoreGone, open_run, tracking_settings
from ssl_ray.tracking.client import connect
from ssl_ray.trained.evaluate import dataset_of, remember
from ssl_ray.trained.report.gather import find
from ssl_ray.trained.subject import Subject
from ssl_ray.training import checkpoint
from ssl_ray.training.folder import CHECKPOINTS, RunFolder
from ssl_ray.training.places import exists, lasting, recorded, reopen
from ssl_ray.training.preflight import preflight
from ssl_ray.training.pretrain import Request, new_record, pretrain
from ssl_ray.training.trained import load_algorithm


def pictures(folder: Path, seed: int = 0, per_class: int = 6) -> Path:
    generator = np.random.default_rng(seed)
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for i in range(per_class):
            image = generator.integers(0, 255, (20, 20, 3), np.uint8)
            assert cv2.imwrite(str(folder / label / f"{i}.png"), image)
    return folder


def test_paths_become_absolute_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    here = str(tmp_path)
    kept = {
        "fashion": "fashion",
        "./fashion": f"{here}/fashion",
        "pics": f"{here}/pics",
        "pics/": f"{here}/pics",
        "../pics": f"{tmp_path.parent}/pics",
        "~/pics": "/home/me/pics",
        "/data/pics": "/data/pics",
        "s3://bucket/train/?region=x": "s3://bucket/train/?region=x",
        "file:///data/pics": "file:///data/pics",
        "torchvision:CIFAR10": "torchvision:CIFAR10",
        "torchvision:CIFAR10?root=my sets&download=1": f"torchvision:CIFAR10?root={here}/my%20sets&download=1",
        "torchvision:CIFAR10?download=1&root=/data": "torchvision:CIFAR10?download=1&root=/data",
        "torchvision:FakeData?size=8": "torchvision:FakeData?size=8",
        "torchvision:SBU?root=a&annFile=b.json": f"torchvision:SBU?root={here}/a&annFile={here}/b.json",
    }
    assert {typed: lasting(typed) for typed in kept} == kept
    assert {place: lasting(place) for place in kept.values()} == {place: place for place in kept.values()}
    assert lasting("pics", "/began") == "/began/pics"
    assert not exists("torchvision:CIFAR10?root=nowhere")
    assert exists(f"torchvision:CIFAR10?root={here}")


def test_in_a_job_relative_paths_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "working_dir_files" / "x"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert lasting("pics") == f"{copy}/pics", "a folder of that name, but no job"
    config = {"metadata": {"job_submission_id": "first"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert lasting("pics") == "pics"
    assert lasting("/data/pics") == "/data/pics"
    assert lasting("torchvision:CIFAR10?root=sets") == "torchvision:CIFAR10?root=sets"
    # The next job has another copy of the same.
    assert recorded({"data": "pics", "python_path": ["/gone/working_dir_files/y"]}) == "pics"


def test_a_digest_does_not_depend_on_the_place(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "one" / "pics")
    table = pa.table(
        {"image": [p.read_bytes() for p in sorted(folder.rglob("*.png"))], "label": [0] * 6 + [1] * 6}
    )
    (tmp_path / "one" / "tables").mkdir()
    pq.write_table(table, tmp_path / "one" / "tables" / "part.parquet")
    prepare_dataset(open_dataset(str(folder)), tmp_path / "one" / "shards")
    before = {name: open_dataset(str(tmp_path / "one" / name)) for name in ("pics", "tables", "shards")}
    (tmp_path / "one").rename(tmp_path / "two")
    for name, dataset in before.items():
        (tmp_path / "two" / name).rename(tmp_path / "two" / f"other-{name}")
        moved = open_dataset(str(tmp_path / "two" / f"other-{name}"))
        assert moved.train.info.digest == dataset.train.info.digest
        assert moved.val is not None
        assert dataset.val is not None
        assert moved.val.info.digest == dataset.val.info.digest


SETTINGS = [
    "views.size=16",
    "algorithm.backbone.width=8",
    "algorithm.neck.in_channels=64",
    "training.global_batch_size=8",
    "training.epochs=3",
    "evaluation.k=3",
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store whose tables exist: creating them takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def project(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images, a run on them with a checkpoint, and MLflow's store, side by side; begun in that folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # nobody answers: who gets as far as Ray says so
    home = tmp_path / "old"
    pictures(home / "pics")
    monkeypatch.chdir(home)
    shutil.copy(database, "mlflow.db")
    dataset = open_dataset("pics")
    chosen = overrides(load("simclr").SMALL, parse_settings(SETTINGS))
    torch.save(chosen.algorithm.kwargs["backbone"].build().state_dict(), "begin.pt")
    chosen = overrides(chosen, {"algorithm.pretrained": "begin.pt"})
    recipe = resolve(chosen, dataset.train.info).recipe
    assert recipe.algorithm.kwargs["pretrained"] == str(home / "begin.pt")
    folder = RunFolder.at("runs", "r1")
    record = new_record(Request(data="pics"), "r1", dataset, [str(home)])
    with open_run(tracking_settings(folder.uri), name="r1") as run:
        record |= {
            "mlflow_run_id": run.run_id,
            "mlflow_experiment_id": run.target.experiment_id,
            "mlflow": {"uri": run.target.uri, "experiment": "ssl-ray"},
        }
    folder.begin(recipe, record)
    algorithm = recipe.algorithm.build()
    directory = home / "runs" / "r1" / "checkpoint_000001"
    directory.mkdir()
    checkpoint.save(
        directory,
        algorithm=algorithm,
        optimizer=torch.optim.SGD(algorithm.parameters(), lr=0.1),
        recipe=recipe,
        next_step=2,
        evaluations=[],
    )
    snapshot = {"checkpoint_results": [{"checkpoint_dir_name": directory.name, "metrics": {"step": 2}}]}
    (home / "runs" / "r1" / CHECKPOINTS).write_text(json.dumps(snapshot))
    return home


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that `ssl-ray ARGUMENTS` ends with."""
    monkeypatch.setattr(sys, "argv", ["ssl-ray", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


AT_RAY = "nobody answers at 127.0.0.1:9"


def record_of(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "runs" / "r1" / "run.json").read_text())
    return found


def test_it_is_continued_from_another_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert record_of(project)["data"] == str(project / "pics")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert AT_RAY in said(monkeypatch, capsys, "pretrain", f"--resume={project}/runs/r1")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("folder", ["old", "."])
def test_a_record_of_an_earlier_version_is_understood(
    project: Path,
    tmp_path: Path,
    folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    RunFolder.at("runs", "r1").update(data="pics")
    monkeypatch.chdir(tmp_path / folder)
    assert AT_RAY in said(monkeypatch, capsys, "pretrain", f"--resume={project}/runs/r1")
    assert record_of(project)["data"] == str(project / "pics")


def test_an_earlier_version_s_project_that_moved_as_a_whole(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder.at("runs", "r1").update(data="pics")
    new = project.rename(project.parent / "new")
    monkeypatch.chdir(new)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert AT_RAY in said(monkeypatch, capsys, "pretrain", "--resume=r1")
    assert record_of(new)["data"] == str(new / "pics")
    assert not project.exists()


def test_images_that_moved_are_named_and_their_new_place_is_remembered(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "pics").rename(project / "pics2")
    pictures(project / "others", seed=1, per_class=7)
    line = said(monkeypatch, capsys, "pretrain", "--resume=r1")
    assert f"no such file or folder: '{project}/pics', the images of 'r1'; if they moved" in line
    assert "ssl-ray pretrain --resume r1 --data PLACE" in line

    wrong = said(monkeypatch, capsys, "pretrain", "--resume=r1", "--data=others")
    digests = [open_dataset(place).train.info.digest for place in ("others", "pics2")]
    assert (
        f"{project}/others is not what run 'r1' began with (digest {digests[0]}, was {digests[1]})" in wrong
    )
    assert record_of(project)["data"] == str(project / "pics")
    assert "no such file or folder: '" in said(monkeypatch, capsys, "pretrain", "--resume=r1", "--data=no")

    assert AT_RAY in said(monkeypatch, capsys, "pretrain", "--resume=r1", "--data=pics2")
    assert record_of(project)["data"] == str(project / "pics2")
    assert AT_RAY in said(monkeypatch, capsys, "pretrain", "--resume=r1"), "it is remembered"
    for option in ("--name=x", "--holdout=0.2", "--set=training.epochs=9", "--epochs=9"):
        assert "leave out" in said(monkeypatch, capsys, "pretrain", "--resume=r1", option)


def test_the_same_name_again_remembers_the_place(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"--set={s}" for s in (*SETTINGS, "algorithm.pretrained=begin.pt")]
    again = ["pretrain", "simclr", "--scale=small", "--name=r1", "--quiet", *settings]
    (project / "pics").rename(project / "pics2")
    assert AT_RAY in said(monkeypatch, capsys, *again, "--data=pics2")
    # The file's path of an earlier version is the same file's.
    text = (project / "runs/r1/recipe.json").read_text()
    (project / "runs/r1/recipe.json").write_text(text.replace(str(project / "begin.pt"), "begin.pt"))
    assert AT_RAY in said(monkeypatch, capsys, *again, "--data=pics2")


def test_a_whole_project_that_moved(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = project.rename(project.parent / "new")
    monkeypatch.chdir(new)
    assert "--data PLACE" in said(monkeypatch, capsys, "pretrain", "--resume=r1")
    resume = ["pretrain", "--resume=r1", "--data=pics"]
    for command in (resume, ["pretrain", "--resume=r1"], ["report", "r1"], ["report", f"{new}/runs/r1"]):
        line = said(monkeypatch, capsys, *command)
        assert f"MLflow's store is gone: there is no file '{project}/mlflow.db'" in line
        assert "MLFLOW_TRACKING_URI=sqlite:////NEW/FOLDER/mlflow.db" in line
        assert not project.exists(), "nothing is made at the old place"
    with pytest.raises(StoreGone):
        find("r1", "runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert AT_RAY in said(monkeypatch, capsys, *resume)
    assert find("r1", "runs").run.name == "r1"
    # It knows by whole paths where artifacts are, and would make the old place for the next of them.
    settings = tracking_settings("runs/r1", must_exist=True)
    for run_id in (record_of(new)["mlflow_run_id"], None):
        with pytest.raises(
            StoreGone, match=f"below '{project}', which is gone; .* ssl-ray runs moved {project} NEW_PLACE"
        ):
            open_run(settings, name="r1", run_id=run_id)
    page = new / "page.html"
    page.write_text("x")
    with pytest.raises(StoreGone, match="ssl-ray runs moved"):
        find("r1", "runs").history.attach(record_of(new)["mlflow_run_id"], page)
    assert "keeps nothing below '/no/such'" in said(monkeypatch, capsys, "runs", "moved", "/no/such", ".")
    assert "there is no folder '" in said(monkeypatch, capsys, "runs", "moved", str(project), "none")
    monkeypatch.setattr(sys, "argv", ["ssl-ray", "runs", "moved", str(project), ".", "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"old": str(project), "new": str(new), "changed": 2}
    again = open_run(settings, name="r1", run_id=record_of(new)["mlflow_run_id"])
    find("r1", "runs").history.attach(again.run_id, page)
    again.finish()
    assert [p.read_text() for p in (new / "mlruns").rglob("page.html")] == ["x"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new}/none.db")
    assert f"there is no file '{new}/none.db'" in said(monkeypatch, capsys, *resume)
    assert not (new / "none.db").exists()
    assert not project.exists()


def test_a_finished_run_says_where_it_is_now(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = {
        "run": "r1",
        "status": "finished",
        "steps": 8,
        "folder": str(project / "runs/r1"),
        "checkpoint": "x",
    }
    RunFolder.at("runs", "r1").finish(summary)
    new = project.rename(project.parent / "new")
    monkeypatch.chdir(new)
    done = pretrain(Request(resume="r1", data="pics", as_json=True), Console("quiet"))
    assert (done["folder"], done["checkpoint"]) == (f"{new}/runs/r1", f"{new}/runs/r1/checkpoint_000001")
    said_ = capsys.readouterr()
    assert f"MLflow's store is gone: there is no file '{project}/mlflow.db'" in said_.err
    assert not project.exists()
    assert record_of(new)["data"] == str(new / "pics")


def test_the_weights_that_it_began_with_may_be_gone(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "begin.pt").rename(project / "moved.pt")
    folder = RunFolder.at("runs", "r1")
    recipe = folder.recipe()
    with pytest.raises(UserError, match="no such file"):
        preflight(recipe)
    assert AT_RAY in said(monkeypatch, capsys, "pretrain", "--resume=r1"), "the checkpoint has its own"
    newest = folder.latest_checkpoint()
    assert newest is not None
    assert load_algorithm(recipe, newest)[1] == 2
    # Before the first checkpoint they are needed, and may be named anew.
    (project / "runs/r1" / CHECKPOINTS).unlink()
    assert f"{project}/begin.pt: no such file" in said(monkeypatch, capsys, "pretrain", "--resume=r1")
    moved = "--set=algorithm.pretrained=moved.pt"
    assert AT_RAY in said(monkeypatch, capsys, "pretrain", "--resume=r1", moved)


def test_modules_that_moved_are_named(project: Path) -> None:
    folder = RunFolder.at("runs", "r1")
    file = project / "runs/r1/recipe.json"
    recipe = json.loads(file.read_text())
    recipe["algorithm"]["type"] = "my_own_module_of_old:Mine"
    file.write_text(json.dumps(recipe))
    with pytest.raises(UserError, match="my_own_module_of_old") as error:
        folder.recipe()
    assert "PYTHONPATH" not in str(error.value)
    folder.update(python_path=["/gone/project"])
    with pytest.raises(
        UserError, match=r"'/gone/project', which is gone: if it moved, put PYTHONPATH=FOLDER"
    ):
        folder.recipe()


def subject(folder: RunFolder) -> Subject:
    return Subject(torch.nn.Identity(), folder.name, "", 16, folder=folder)


def test_an_evaluation_knows_the_run_s_own_images_elsewhere(project: Path) -> None:
    folder = RunFolder.at("runs", "r1")
    folder.update(holdout=0.25, dataset_digest=open_dataset("pics", holdout=0.25).train.info.digest)
    assert dataset_of(subject(folder), "pics", {}, None)[1].train.info.num_samples == 9
    (project / "pics").rename(project / "pics2")
    with pytest.raises(UserError, match=r"pics', the images of 'r1'; .* ssl-ray evaluate r1 --data PLACE"):
        dataset_of(subject(folder), None, {}, None)
    data, dataset = dataset_of(subject(folder), "pics2", {}, None)
    assert (data, dataset.train.info.num_samples) == ("pics2", 9), "held out as the run did"
    assert remember(subject(folder), data, dataset) == str(project / "pics2")
    assert record_of(project)["data"] == str(project / "pics2")
    assert dataset_of(subject(folder), None, {}, None)[0] == str(project / "pics2")

    pictures(project / "others", seed=1, per_class=8)
    data, dataset = dataset_of(subject(folder), "others", {}, None)
    assert dataset.train.info.num_samples == 14, "a tenth of other images, as usual"
    assert remember(subject(folder), data, dataset) == str(project / "others")
    assert record_of(project)["data"] == str(project / "pics2")


def test_a_search_is_continued_where_its_images_are_now(project: Path) -> None:
    record = record_of(project)
    (project / "pics").rename(project / "pics2")
    with pytest.raises(UserError, match=r"say where they are now: ssl-ray tune --resume s --data PLACE"):
        reopen("s", record, None, "ssl-ray tune --resume s")
    place, dataset = reopen("s", record, "pics2", "ssl-ray tune --resume s")
    assert place == str(project / "pics2")
    assert dataset.train.info.digest == record["dataset_digest"]
