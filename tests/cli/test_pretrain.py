"""`ssl-ray pretrain` as users run it: what it prints, what it leaves in MLflow, how it is repeated and continued."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import pytest
import torch
from sklearn.datasets import load_digits

from ssl_ray.console import TrainStatus
from ssl_ray.data.source import open_dataset
from ssl_ray.experiments import load_recipe
from ssl_ray.recipe import Recipe
from ssl_ray.tracking.client import connect, import_mlflow
from tests.runs import NOBODY, drive, environment, run, state, summary
from tests.training import local

pytestmark = pytest.mark.process

STEPS = 4
# The smallest of each that is still itself.
COMMON = [
    "--set=views.size=16",
    "--set=training.global_batch_size=32",
    "--set=training.log_steps=2",
    "--set=training.checkpoint_minutes=null",
    "--set=evaluation.max_samples=200",
    "--epochs=2",
    f"--steps={STEPS}",
]
NARROW = ["--set=algorithm.backbone.width=8", "--set=algorithm.neck.in_channels=64"]
ALGORITHMS = {"moco": [*NARROW, "--set=algorithm.queue_size=64"], "simclr": NARROW, "mae": []}
MAE = ["mae", "--data=digits", *COMMON, "--set=training.log_steps=1"]
# Terminal codes, and what Ray, Python or MLflow would say.
NOISE = re.compile(r"\x1b|\(?pid=|raylet|\bray\b|[Ww]arning|Traceback|INFO|ERROR|alembic", re.MULTILINE)


class Ran(NamedTuple):
    """A finished run: the process, what `--json` says of it, and the run in MLflow."""

    name: str
    done: "subprocess.CompletedProcess[str]"
    summary: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with a commit, and in it a folder of 400 digits in ten classes."""
    folder = tmp_path_factory.mktemp("here")
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:400], digits.target, strict=False)):
        path = folder / "images" / str(label) / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.resize(image.astype("uint8") * 16, (20, 20)))
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "nothing"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *command], cwd=folder, env=environment(folder), check=True)
    return folder


@pytest.fixture(scope="module")
def moco(here: Path, two_cpus: str) -> Ran:
    """For people, on a folder, on a cluster that was there before."""
    arguments = [
        "moco",
        "--data=images",
        *COMMON,
        *ALGORITHMS["moco"],
        "--name=moco",
        f"--address={two_cpus}",
    ]
    done = run(here, "pretrain", *arguments)
    assert done.returncode == 0, done.stderr
    record = json.loads((here / "runs" / "moco" / "run.json").read_text())
    return Ran("moco", done, record["summary"], here)


@pytest.fixture(scope="module")
def simclr(here: Path) -> Ran:
    """With --json, on an embedded set, on Ray that the command starts and ends itself."""
    done = run(
        here, "pretrain", "simclr", "--data=digits", *COMMON, *ALGORITHMS["simclr"], "--json", "--name=s"
    )
    return Ran("s", done, summary(done), here)


@pytest.fixture(scope="module")
def mae(here: Path, two_cpus: str) -> Ran:
    """The same with a reading at every step, by two workers on the cluster."""
    done = drive(here, "pretrain", *MAE, "--json", "--workers=2", "--name=mae", f"--address={two_cpus}")
    return Ran("mae", done, summary(done), here)


@pytest.fixture(params=ALGORITHMS)
def ran(request: pytest.FixtureRequest) -> Ran:
    """Each of the three in turn."""
    result: Ran = request.getfixturevalue(request.param)
    return result


def tracked(ran: Ran) -> Any:
    """The run as MLflow has it."""
    return connect(f"sqlite:///{ran.folder / 'mlflow.db'}").get_run(ran.summary["mlflow_run_id"])


def recipe_of(ran: Ran) -> Recipe:
    return Recipe.from_json(json.loads((ran.folder / "runs" / ran.name / "recipe.json").read_text()))


def test_output_in_a_pipe_is_plain(ran: Ran) -> None:
    for text in (ran.done.stdout, ran.done.stderr):
        assert not NOISE.search(text.replace("ssl-ray", "")), text
    assert f"step {STEPS}/{STEPS}" in ran.done.stderr or "--json" in ran.done.args


def test_what_people_read(moco: Ran) -> None:
    out = moco.done.stdout
    assert out.startswith("moco (SMALL of moco: the images, 20 x 20 px")
    assert "360 images" in out, "a tenth is held out"
    assert re.search(r"untrained network +\d+\.\d\n", out)
    assert f"run:    {moco.folder / 'runs' / 'moco'}\n" in out
    assert re.search(r"^MLflow: mlflow ui --backend-store-uri sqlite:////", out, re.MULTILINE)
    readings = re.findall(
        r"^moco: step (\d+)/4 epoch 1/2 loss \d\S+ lr \S+ .*images/s", moco.done.stderr, re.MULTILINE
    )
    assert readings == ["2", "4"]


def test_json_is_all_there_is(simclr: Ran) -> None:
    assert simclr.done.stdout.count("\n") == 1
    assert simclr.done.stderr == ""
    said = simclr.summary
    assert said["status"] == "finished"
    assert said["steps"] == STEPS
    assert said["run"] == "s"
    assert Path(said["checkpoint"]).is_dir()
    assert said["images_per_second"] > 0
    assert [e["step"] for e in said["evaluations"]] == [0, STEPS]


def test_mlflow_has_it_all(ran: Ran) -> None:
    record = tracked(ran)
    assert record.info.status == "FINISHED"
    assert record.info.run_name == ran.name
    params = record.data.params
    assert params["training.global_batch_size"] == "32"
    assert params["algorithm.backbone.type"].startswith("ssl_ray.models.backbones.")
    assert float(params["optimization.lr"]) == recipe_of(ran).optimization.lr
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ran.folder, capture_output=True, text=True, check=True
    )
    tags = record.data.tags
    assert tags["mlflow.source.git.commit"] == commit.stdout.strip()
    assert tags["git.dirty"] == "false"
    assert tags["world_size"] == ("2" if ran.name == "mae" else "1")
    (given,) = record.inputs.dataset_inputs
    assert given.dataset.name == ("images" if ran.name == "moco" else "digits")
    assert tags["dataset_digest"].startswith(given.dataset.digest)

    client = connect(f"sqlite:///{ran.folder / 'mlflow.db'}")
    for name in (
        "train/loss",
        "train/lr",
        *(f"perf/{n}" for n in ("images_per_second", "data_wait", "step_time")),
    ):
        points = client.get_metric_history(record.info.run_id, name)
        assert [p.step for p in points] == ([1, 2, 3, 4] if ran.name == "mae" else [2, 4]), name
    judged = client.get_metric_history(record.info.run_id, "val/knn_top1")
    assert [(p.step, p.value) for p in judged] == [
        (e["step"], pytest.approx(e["val/knn_top1"])) for e in ran.summary["evaluations"]
    ]
    assert judged[0].value > 0.2, "images and labels belong together: even an untrained network beats chance"
    assert client.get_metric_history(record.info.run_id, "embedding/std")[-1].value > 0
    assert 0 <= record.data.metrics["perf/data_wait"] <= 1
    assert record.data.metrics["data/broken_images"] == 0

    files = {f.path: f.file_size for f in client.list_artifacts(record.info.run_id)}
    assert files.keys() >= {"recipe.json", "preview.png", "loss.png"}
    for name in ("preview.png", "loss.png"):
        local = client.download_artifacts(record.info.run_id, name)
        assert min(cv2.imread(local).shape[:2]) > 100
    stored = json.loads(Path(client.download_artifacts(record.info.run_id, "recipe.json")).read_text())
    assert Recipe.from_json(stored) == recipe_of(ran)


def test_the_backbone_is_the_checkpoint_s(ran: Ran) -> None:
    uri = f"sqlite:///{ran.folder / 'mlflow.db'}"
    images = torch.randint(
        0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    mlflow = import_mlflow("mlflow.pytorch") and import_mlflow()
    mlflow.set_tracking_uri(uri)
    try:
        loaded = mlflow.pytorch.load_model(f"runs:/{ran.summary['mlflow_run_id']}/backbone")
    finally:
        mlflow.set_tracking_uri(None)
    backbone = recipe_of(ran).algorithm.kwargs["backbone"].build().eval()
    saved = state(ran.summary["checkpoint"])
    backbone.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in saved.items() if k.startswith("backbone.")}
    )
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normalised = (images / 255 - mean) / std
    with torch.inference_mode():
        got = loaded(images)
        expected = (
            backbone.tokens(normalised)[:, 1:].mean(1)
            if ran.name == "mae"
            else backbone(normalised)[-1].mean((2, 3))
        )
    assert got.shape == (5, backbone.feature_dim)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_two_workers_see_and_learn_what_one_does(mae: Ran, tmp_path: Path) -> None:
    alone = local.train(local.job_of(*MAE), tmp_path)
    readings = [message for message in alone.messages if isinstance(message, TrainStatus)]
    expected = {name: [(r.step, getattr(r, name)) for r in readings] for name in ("loss", "lr")}
    expected["std"] = [(e["step"], e["embedding/std"]) for e in alone.summary["evaluations"]]
    client = connect(f"sqlite:///{mae.folder / 'mlflow.db'}")
    for name, metric in (("loss", "train/loss"), ("lr", "train/lr"), ("std", "embedding/std")):
        shared = [(p.step, p.value) for p in client.get_metric_history(mae.summary["mlflow_run_id"], metric)]
        assert shared == [(step, pytest.approx(value, rel=1e-4)) for step, value in expected[name]], name
    assert len({value for _, value in expected["loss"]}) == STEPS


def test_the_stored_recipe_repeats_the_run(moco: Ran, tmp_path: Path) -> None:
    """In this process, and to the last bit."""
    client = connect(f"sqlite:///{moco.folder / 'mlflow.db'}")
    stored = client.download_artifacts(moco.summary["mlflow_run_id"], "recipe.json")
    images = open_dataset(str(moco.folder / "images"))
    again = local.train(local.job(load_recipe(stored).recipe, dataset=images), tmp_path)
    local.assert_same(again.last["algorithm"], state(moco.summary["checkpoint"]))
    assert again.summary["evaluations"] == moco.summary["evaluations"]


def test_a_finished_run_is_not_run_again(moco: Ran) -> None:
    checkpoint = Path(moco.summary["checkpoint"], "checkpoint.pt")
    before, written = tracked(moco), checkpoint.stat().st_mtime_ns
    started = time.monotonic()
    done = drive(moco.folder, "pretrain", "--resume=runs/moco")
    assert time.monotonic() - started < 60, "nothing was started"
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"moco is finished: {STEPS} steps; nothing left to do\n")
    assert done.stdout.splitlines()[1:] == moco.done.stdout.splitlines()[-len(done.stdout.splitlines()) + 1 :]
    assert tracked(moco).to_dictionary() == before.to_dictionary()
    assert checkpoint.stat().st_mtime_ns == written


def refused(folder: Path, *arguments: str) -> str:
    """The one line that `ssl-ray pretrain ARGUMENTS` ends with, before Ray is asked for."""
    done = drive(folder, "pretrain", *arguments, env={"RAY_ADDRESS": NOBODY})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_name_belongs_to_one_recipe(moco: Ran) -> None:
    arguments = ["moco", "--data=images", *COMMON, *ALGORITHMS["moco"]]
    line = refused(moco.folder, *arguments, "--seed=1", "--name=moco")
    assert line.startswith("ssl-ray: name: run 'moco' exists in ")
    assert "with another recipe" in line


def test_a_run_belongs_to_its_data(moco: Ran) -> None:
    extra = moco.folder / "images" / "0" / "extra.png"
    extra.write_bytes((moco.folder / "images" / "0" / "000.png").read_bytes())
    try:
        line = refused(moco.folder, "--resume=moco")
    finally:
        extra.unlink()
    place = moco.folder / "images"
    assert line.startswith(f"ssl-ray: data: {place} is not what it was when run 'moco' began")


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (
            ["--workers=64", "--set=training.global_batch_size=1024"],
            {},
            "workers: 64 workers need 16 CPUs at the least and one more for the data",
        ),
        ([], {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "MLflow at http://127.0.0.1:9 cannot be used"),
    ],
)
def test_what_only_a_cluster_or_a_server_can_tell(tmp_path, two_cpus, arguments, env, said) -> None:
    small = ["--data=digits", "--set=training.global_batch_size=64", f"--address={two_cpus}"]
    done = drive(tmp_path, "pretrain", "moco", *small, *arguments, env=env)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("ssl-ray: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
