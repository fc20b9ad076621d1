"""What was logged is read back from a real store."""

import math
import os
import subprocess
import sys

import pytest

from ssl_ray.errors import UserError
from ssl_ray.tracking import FOLDER, Tracker, find_run, open_history, open_run, tracking_settings
from ssl_ray.tracking.client import connect, import_mlflow
from ssl_ray.tracking.history import past_run
from ssl_ray.tracking.sqlite import experiments, read, run_called, runs_of, values_of
from ssl_ray.trained.runs import best
from tests.trained.past import past


def test_a_run_as_it_was_logged(settings, tmp_path) -> None:
    tags = {"world_size": "2", FOLDER: "/runs/first"}
    with open_run(
        settings, name="first", params={"name": "moco", "training": {"epochs": 3}}, tags=tags
    ) as run:
        run.log_dataset("digits", "abc", "/data/digits")
        with Tracker(run.target, interval=0.01) as tracker:
            for step, value in enumerate((3.0, math.nan, math.inf, 1.5), start=1):
                tracker.log({"train/loss": value}, step)
            tracker.log({"val/knn_top1": 0.5}, 4)
    history = open_history(settings)
    (found,) = history.runs()
    assert (found.name, found.status, found.algorithm) == ("first", "finished", "moco")
    assert found.params["training.epochs"] == "3"
    assert (found.tags["world_size"], found.tags[FOLDER]) == ("2", "/runs/first")
    assert (found.data, found.digest, found.source) == ("digits", "abc", "/data/digits")
    assert found.metrics == {"train/loss": 1.5, "val/knn_top1": 0.5}
    assert found.seconds is not None
    assert 0 <= found.seconds < 300
    points = history.metric(found.run_id, "train/loss")
    assert [p.step for p in points] == [1, 2, 3, 4]
    assert [p.value for p in points if p.value == p.value] == [3.0, math.inf, 1.5]
    assert math.isnan(points[1].value)
    assert history.metric(found.run_id, "no/such") == []

    (tmp_path / "page.html").write_text("<p>")
    history.attach(found.run_id, tmp_path / "page.html", "report")
    (tmp_path / "got").mkdir()
    copy = history.artifact(found.run_id, "report/page.html", tmp_path / "got")
    assert copy is not None
    assert copy.read_text() == "<p>"
    assert history.artifact(found.run_id, "report/other.html", tmp_path / "got") is None


def test_of_a_step_that_was_logged_twice_the_later_value_counts(settings) -> None:
    run = open_run(settings, name="resumed")
    client, entities = connect(settings.uri), import_mlflow("mlflow.entities")
    logged = [(1, 9.0, 1000), (2, 8.0, 2000), (2, 7.0, 5000), (3, 6.0, 6000)]
    metrics = [entities.Metric("train/loss", value, time, step) for step, value, time in logged]
    client.log_batch(run.run_id, metrics=metrics[::-1])
    run.finish()
    points = open_history(settings).metric(run.run_id, "train/loss")
    assert [(p.step, p.value, p.time) for p in points] == [(1, 9.0, 1.0), (2, 7.0, 5.0), (3, 6.0, 6.0)]


def test_an_accuracy_that_became_nan_is_no_longer_what_it_was(settings) -> None:
    for name, values in (("healthy", (0.5, 0.6)), ("diverged", (0.9, math.nan))):
        with open_run(settings, name=name) as run, Tracker(run.target, interval=0.01) as tracker:
            for step, value in enumerate(values, start=1):
                tracker.log({"val/knn_top1": value}, step)
    runs = open_history(settings).runs()
    assert [math.isnan(run.metrics["val/knn_top1"]) for run in runs] == [True, False]
    assert [run.name for run in best(runs, "val/knn_top1")] == ["healthy"]


def _comparable(run) -> dict:
    """All of a run; a NaN does not equal itself, its text does."""
    return vars(run) | {"metrics": {name: repr(value) for name, value in run.metrics.items()}}


def test_a_file_is_read_as_mlflow_reads_it(settings) -> None:
    client = connect(settings.uri)
    for number, status in enumerate(("FINISHED", "FAILED", "KILLED", "FINISHED")):
        run = open_run(
            settings,
            name=f"run {number}",
            params={"name": "moco", "training": {"epochs": number}},
            tags={"quoted": "\"a\",\n'b'", "parent": "\u00fc"},
        )
        if number:
            run.log_dataset(f"data {number}", "abc", "s3://bucket/images")
        with Tracker(run.target, interval=0.01) as tracker:
            for step, value in enumerate((3.0, math.nan, math.inf, -math.inf, 0.5)[: 5 - number]):
                tracker.log({"train/loss": value, "system/cpu": 1.0, "val/knn_top1": step / 4}, step)
        run.finish(status)
    client.delete_run(run.run_id)
    open_run(settings, name="running")
    experiment = client.get_experiment_by_name(settings.experiment).experiment_id
    same_moment = [client.create_run(experiment, start_time=5).info.run_id for _ in range(3)]
    client.set_tag(same_moment[0], "mlflow.runName", "renamed")

    entities = client.search_runs([experiment], order_by=["attributes.start_time DESC"])
    by_mlflow = [past_run(entity) for entity in entities]
    assert len(by_mlflow) == 7
    by_file = read(settings.uri, runs_of(experiment))
    assert list(map(_comparable, by_file)) == list(map(_comparable, by_mlflow))
    deleted = read(settings.uri, run_called(run.run_id))
    assert deleted.name == past_run(client.get_run(run.run_id)).name == "run 3"
    for found in by_mlflow:
        for metric in found.metrics:
            values = client.get_metric_history(found.run_id, metric)
            expected = [(m.step, repr(m.value), m.timestamp) for m in values]
            ours = read(settings.uri, values_of(found.run_id, metric))
            assert sorted((step, repr(value), time) for step, value, time in ours) == sorted(expected)
    stages = {e.experiment_id: (e.name, e.lifecycle_stage) for e in client.search_experiments(view_type=3)}
    assert {e.experiment_id: e[1:] for e in read(settings.uri, experiments)} == stages


RUNS = """
import sys
from ssl_ray.cli import main
for words in (["list"], ["show", "one"], ["compare", "one", "two"], ["best", "--metric", "train/loss"]):
    sys.argv = ["ssl-ray", "runs", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
print({"mlflow", "sqlalchemy", "pandas", "torch"} & sys.modules.keys())
"""


@pytest.mark.process
def test_runs_of_a_file_are_shown_without_importing_mlflow(settings) -> None:
    for name in ("one", "two"):
        with open_run(settings, name=name) as run, Tracker(run.target, interval=0.01) as tracker:
            tracker.log({"train/loss": 1.0}, 1)
    done = subprocess.run(
        [sys.executable, "-c", RUNS],
        env=os.environ | {"MLFLOW_TRACKING_URI": settings.uri},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nset()\n")


def test_what_only_mlflow_can_read_is_left_to_it(tmp_path, settings, monkeypatch) -> None:
    for content in (b"", b"no database" * 100):
        (tmp_path / "other.db").write_bytes(content)
        assert read(f"sqlite:///{tmp_path}/other.db", experiments) is None
        assert (tmp_path / "other.db").read_bytes() == content
    assert read("http://127.0.0.1:5000", experiments) is None
    assert read(settings.uri, experiments)
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team")
    assert read(settings.uri, experiments) is None


def test_deleted_runs_are_not_listed(settings) -> None:
    kept, deleted = (open_run(settings, name=name) for name in ("kept", "deleted"))
    for run in (kept, deleted):
        run.finish()
    connect(settings.uri).delete_run(deleted.run_id)
    assert [r.name for r in open_history(settings).runs()] == ["kept"]


def test_a_store_that_is_not_there_is_not_made(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"no runs yet: .*mlflow.db does not exist; `ssl-ray pretrain moco`"):
        open_history(tracking_settings("."))
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_that_is_not_there(settings, database) -> None:
    open_run(settings, name="x").finish()
    near = tracking_settings(".", uri=f"sqlite:///{database}", experiment=settings.experiment + "x")
    with pytest.raises(UserError, match=f"has none called .*; did you mean '{settings.experiment}'"):
        open_history(near)


def test_a_server_that_does_not_answer(closed_port, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="cannot be read"):
        open_history(tracking_settings(".", uri=f"http://127.0.0.1:{closed_port}"))


def test_which_run_is_meant() -> None:
    runs = [
        past("moco-fashion", start=1.0),
        past("moco-digits"),
        past("mae-fashion"),
        past("moco-fashion", start=2.0),
    ]
    assert find_run("mae-fashion", runs) is runs[2]
    assert find_run("mae", runs) is runs[2], "the beginning of one name"
    assert find_run("moco-fashion", runs) is runs[3], "of one name the newest"
    assert find_run(runs[2].run_id, runs) is runs[2]
    assert find_run(runs[2].run_id[:6], runs) is runs[2]
    for asked, said in (
        ("moc", "may be moco-fashion"),
        ("", "there is no ''"),
        ("maee-fashion", "did you mean 'mae-fashion'?"),
    ):
        with pytest.raises(UserError) as error:
            find_run(asked, runs)
        assert said in str(error.value)
