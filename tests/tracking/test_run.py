import logging
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ssl_ray.errors import UserError
from ssl_ray.tracking import (
    StoreGone,
    TrackedRun,
    Tracker,
    TrackingTarget,
    default_tags,
    deliver,
    make_tracker,
    open_history,
    open_run,
    prepare,
    tracking_settings,
    why_not,
)
from ssl_ray.tracking.client import connect, import_mlflow
from ssl_ray.tracking.records import ARTIFACTS_FILE, ENDING_FILE, METRICS_FILE
from ssl_ray.training.notices import Notices
from tests.tracking.conftest import history


def stored(run):
    return connect(run.target.uri).get_run(run.run_id)


def first_use(uri, together):
    """Connects to the store in a process of its own, when the others do."""
    import_mlflow("mlflow.store.tracking.sqlalchemy_store")
    together.wait(120)
    connect(uri)


@pytest.mark.process
def test_a_fresh_store_is_made_once(tmp_path):
    """Two runs that begin at the same moment, where no run was before."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(2)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    both = [context.Process(target=first_use, args=(uri, together)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(120)
    assert [one.exitcode for one in both] == [0, 0]
    assert connect(uri).search_experiments()


def test_params_are_flattened(settings, caplog):
    params = {
        "algorithm": {"head": {"temperature": 0.2}, "layers": [{"dim": 1}, {"dim": 2}], "sizes": (32, 16)},
        "seed": 0,
        "lr": None,
        "long": "x" * 7000,
        "odd?key": "v",
        **{f"p{i}": i for i in range(150)},  # more than one request takes
    }
    with open_run(settings, name="flat", params=params, tags={"world_size": "2"}) as run:
        assert stored(run).info.status == "RUNNING"
    found = stored(run)
    assert found.info.run_name == "flat"
    assert found.info.status == "FINISHED"
    assert found.data.tags["world_size"] == "2"
    assert found.data.params["algorithm.head.temperature"] == "0.2"
    assert found.data.params["algorithm.layers.0.dim"] == "1"
    assert found.data.params["algorithm.layers.1.dim"] == "2"
    assert found.data.params["algorithm.sizes"] == "(32, 16)"
    assert found.data.params["lr"] == "None"
    assert found.data.params["odd_key"] == "v"
    assert found.data.params["long"] == "x" * 6000
    assert len(found.data.params) == 9 - 1 + 150
    assert "param long: 7000 characters, MLflow keeps 6000" in caplog.text


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_ending(settings, error, status):
    with pytest.raises(error), open_run(settings, name="ends") as run:
        raise error
    assert stored(run).info.status == status


def test_resume_is_the_same_run(settings):
    first = open_run(settings, name="r", params={"workers": 2, "seed": 1})
    first.finish("KILLED")
    second = open_run(settings, name="r", params={"workers": 4, "seed": 1, "new": 3}, run_id=first.run_id)
    assert second.target == first.target
    found = stored(second)
    assert found.info.status == "RUNNING"
    assert found.data.params == {"workers": "2", "seed": "1", "new": "3"}
    assert found.data.tags["resumed.workers"] == "4"
    second.finish()
    assert stored(second).info.status == "FINISHED"
    assert stored(second).info.end_time >= found.info.end_time


def test_unknown_run_and_deleted_experiment(settings):
    with pytest.raises(UserError, match="has no run 'nope'"):
        open_run(settings, name="r", run_id="nope")
    run = open_run(settings, name="r")
    client = connect(settings.uri)
    client.delete_run(run.run_id)
    with pytest.raises(UserError, match=f"is deleted; .*`.*mlflow runs restore --run-id {run.run_id}`"):
        open_run(settings, name="r", run_id=run.run_id)
    client.delete_experiment(run.target.experiment_id)
    with pytest.raises(UserError, match=r"its experiment .* is deleted; .*mlflow experiments restore"):
        open_run(settings, name="r", run_id=run.run_id)
    with pytest.raises(UserError, match=r"is deleted in MLflow .*mlflow experiments restore"):
        open_history(settings)
    with pytest.raises(UserError, match="was deleted"):
        open_run(settings, name="r")


@pytest.mark.process
def test_what_is_said_of_a_deletion_undoes_it(settings, tmp_path):
    run = open_run(settings, name="r")
    client = connect(settings.uri)
    for delete in (
        lambda: client.delete_run(run.run_id),
        lambda: client.delete_experiment(run.target.experiment_id),
    ):
        delete()
        with pytest.raises(UserError) as error:
            open_run(settings, name="r", run_id=run.run_id)
        command = str(error.value).split("`")[1].replace(" mlflow ", f" {sys.executable} -m mlflow ")
        subprocess.run(command, shell=True, cwd=tmp_path, check=True, capture_output=True)
        assert open_run(settings, name="r", run_id=run.run_id).run_id == run.run_id


def test_no_store_is_made_in_the_place_of_one_that_is_gone(settings, tmp_path, caplog):
    gone = tmp_path / "old" / "mlflow.db"
    away = replace(settings, uri=f"sqlite:///{gone}", must_exist=True)
    target = TrackingTarget(away.uri, "1", "a" * 32, away.folder)
    said = f"MLflow's store is gone: there is no file '{gone}'.*MLFLOW_TRACKING_URI=sqlite:////.*/mlflow.db"
    for use in (
        lambda: open_run(away, name="r", run_id=target.run_id),
        lambda: open_run(away, name="r"),  # a new run in the place of others
        lambda: open_history(away),
        lambda: TrackedRun(target).set_tags({"a": "b"}),
    ):
        with pytest.raises(StoreGone, match=said):
            use()
    prepare(away.uri, must_exist=away.must_exist).join(30)
    tracker = Tracker(target, interval=0.05)
    tracker.log({"x": 1.0}, 0)
    tracker.log_text("kept", "a.txt")
    tracker.close(deadline=2)
    TrackedRun(target).finish()
    assert tracker.undelivered == 2
    assert "kept in" in caplog.text
    assert why_not(target).startswith("MLflow's store is gone")
    with pytest.raises(UserError, match=r"does not take .* MLflow's store is gone"):
        deliver(target.folder, target)
    assert not gone.parent.exists()
    assert "Traceback" not in caplog.text


def test_the_file_is_taken_away_and_comes_back(settings, tmp_path):
    own = replace(settings, uri=f"sqlite:///{tmp_path / 'mlflow.db'}", folder=str(tmp_path / "run"))
    run = open_run(own, name="r")
    with Tracker(run.target, interval=0.05) as tracker:
        tracker.log({"x": 1.0}, 0)
        assert tracker.flush(30)
        (tmp_path / "mlflow.db").rename(tmp_path / "elsewhere.db")
        tracker.log({"x": 2.0}, 1)
        time.sleep(0.5)
        assert not (tmp_path / "mlflow.db").exists()
        (tmp_path / "elsewhere.db").rename(tmp_path / "mlflow.db")
    assert tracker.undelivered == 0
    assert history(run.target, "x") == [(0, 1.0), (1, 2.0)]


def test_what_a_deleted_run_could_not_take_is_told(settings, caplog):
    run = open_run(settings, name="r")
    client = connect(settings.uri)
    client.delete_run(run.run_id)
    tracker = Tracker(run.target, interval=0.05)
    tracker.log({"x": 1.0}, 0)
    tracker.close(deadline=2)
    assert tracker.undelivered == 1
    back = f"mlflow runs restore --run-id {run.run_id}"
    assert back in why_not(run.target)
    with pytest.raises(UserError, match=back):
        deliver(run.target.folder, run.target)
    client.restore_run(run.run_id)
    assert deliver(run.target.folder, run.target) == 1
    assert history(run.target, "x") == [(0, 1.0)]
    run.finish()


def test_nothing_is_said_to_be_kept_that_is_not(settings, caplog, closed_port):
    folder = Path(settings.folder)
    folder.mkdir()
    for name in (METRICS_FILE, ARTIFACTS_FILE, ENDING_FILE):
        (folder / name).mkdir()  # where a file should be
    target = TrackingTarget(f"http://127.0.0.1:{closed_port}", "1", "a" * 32, settings.folder)
    with pytest.raises(IsADirectoryError):
        Tracker(target)
    for name in (METRICS_FILE, ARTIFACTS_FILE):
        (folder / name).rmdir()
    tracker = Tracker(target, interval=0.05)
    for name in (METRICS_FILE, ARTIFACTS_FILE):
        (folder / name).mkdir()
    tracker.log({"x": 1.0}, 0)
    tracker.close(deadline=2)
    TrackedRun(target).finish("FAILED", deadline=2)
    assert tracker.undelivered == 1
    assert "1 metrics and artifacts, nor could they be kept" in caplog.text
    assert "was not told that the run FAILED" in caplog.text
    assert "nor can that be kept" in caplog.text
    assert "they are kept" not in caplog.text
    assert f"keeps them in {folder}" not in caplog.text


def test_store_that_refuses(tmp_path, closed_port):
    settings = tracking_settings(tmp_path, uri=f"http://me:secret@127.0.0.1:{closed_port}")
    with pytest.raises(UserError, match=r"cannot be used.*Connection refused.*MLFLOW_TRACKING_URI") as caught:
        open_run(settings, name="r")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_store_of_a_kind_that_nobody_knows(tmp_path):
    with pytest.raises(UserError, match=r"^MLflow at foo://bar cannot be used") as caught:
        open_run(tracking_settings(tmp_path, uri="foo://bar"), name="r")
    assert "\n" not in str(caught.value)


def test_finish_with_the_store_away(settings, closed_port, tmp_path, caplog):
    run = open_run(settings, name="r")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        object.__setattr__(run.target, "uri", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        run.finish("FAILED", deadline=0.5)
        assert time.monotonic() - begin < 3
    assert "was not told that the run FAILED" in caplog.text
    object.__setattr__(run.target, "uri", settings.uri)
    assert stored(run).info.status == "RUNNING"
    assert deliver(run.target.folder, run.target) == 1
    assert stored(run).info.status == "FAILED"


def test_why_a_run_failed_is_kept_until_it_runs_again(settings):
    first = open_run(settings, name="r")
    first.finish("FAILED", reason="optimization.base_lr: s3://me:secret@bucket is no number")
    assert stored(first).data.tags["error"] == "optimization.base_lr: s3://***@bucket is no number"
    second = open_run(settings, name="r", run_id=first.run_id)
    assert "error" not in stored(second).data.tags
    second.finish()
    assert "error" not in stored(second).data.tags


def test_of_a_store_that_goes_away_we_speak_alone(settings, tmp_path, capfd):
    """MLflow logs what it raises, with pages of SQLAlchemy's traceback, on a handler of its own."""
    heard = []
    database = tmp_path / "mine.db"
    shutil.copy(settings.uri.removeprefix("sqlite:///"), database)
    settings = tracking_settings(tmp_path / "run", uri=f"sqlite:///{database}")
    with Notices(heard.append):
        run = open_run(settings, name="r")
        with make_tracker(run.target) as tracker:
            database.unlink()
            tracker.log({"loss": 1.0}, step=1)
            assert not tracker.flush(10)
            tracker.close(1)
        run.finish("FAILED", deadline=5)
    assert capfd.readouterr().err == ""
    assert "does not take metrics" in heard[0]
    assert "was not told that the run FAILED" in heard[-1]
    assert all("\n" not in line for line in heard)


def test_dataset_is_an_input(settings):
    run = open_run(settings, name="r")
    for _ in range(2):  # a resume says it again
        run.log_dataset("fashion", "d" * 64, "s3://me:secret@bucket/x")
    (entry,) = stored(run).inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("fashion", "d" * 36)
    assert entry.dataset.source == '{"uri": "s3://***@bucket/x"}'
    assert [(t.key, t.value) for t in entry.tags] == [("mlflow.data.context", "training")]
    run.finish()


@pytest.mark.process
def test_default_tags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tags = default_tags()
    assert tags["python"] == sys.version.split()[0]
    assert {"ssl_ray.version", "host", "torch"} <= tags.keys()
    assert "mlflow.source.git.commit" not in tags
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x"]
    (tmp_path / "f").write_text("1")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "f"], check=True)
    subprocess.run([*git, "commit", "-qm", "m"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    tags = default_tags()
    assert tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert tags["git.dirty"] == "false"
    (tmp_path / "f").write_text("2")
    assert default_tags()["git.dirty"] == "true"


@pytest.mark.process
def test_fresh_store_is_quiet_and_in_place(tmp_path):
    code = (
        "import os, pathlib\n"
        "from ssl_ray.tracking import Tracker, open_run, prepare, tracking_settings\n"
        "settings = tracking_settings('runs/a')\n"
        "prepare(settings.uri).join()\n"
        "with open_run(settings, name='r') as run:\n"
        "    os.mkdir('elsewhere'); os.chdir('elsewhere')\n"
        "    with Tracker(run.target) as tracker:\n"
        "        tracker.log({'a': 1}, 0); tracker.log_text('hello', 'sub/a.txt')\n"
    )
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": root},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "mlflow.db").exists()
    assert [p.read_text() for p in tmp_path.glob("mlruns/ssl-ray/*/artifacts/sub/a.txt")] == ["hello"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_prepare_leaves_errors_to_open_run(tmp_path, closed_port, caplog):
    caplog.set_level(logging.WARNING)
    thread = prepare(f"http://127.0.0.1:{closed_port}")
    thread.join(30)
    assert not thread.is_alive()
    assert caplog.text == ""
