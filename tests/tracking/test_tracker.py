import http.server
import math
import pickle
import socket
import statistics
import threading
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from ssl_ray.errors import UserError
from ssl_ray.tracking import NoTracker, Tracker, deliver, make_tracker, open_run
from ssl_ray.tracking.client import connect
from ssl_ray.tracking.records import METRICS_FILE, Artifact, Metric, append, read
from tests.tracking.conftest import history

matplotlib.use("agg")


@pytest.fixture
def run(settings):
    run = open_run(settings, name="r")
    yield run
    run.finish()


def test_metrics_arrive(run):
    with Tracker(pickle.loads(pickle.dumps(run.target))) as tracker:
        for step in range(300):
            tracker.log({"train/loss": step / 2, "a": step, "b": -step, "c": 0.0, "d": 1}, step)
    assert history(run.target, "train/loss") == [(s, s / 2) for s in range(300)]
    assert history(run.target, "b") == [(s, -float(s)) for s in range(300)]
    assert not Path(run.target.folder, METRICS_FILE).exists()


def test_scalars_of_every_kind(run):
    values = [True, 2, 3.0, np.float32(4), np.int64(5), np.array(6.0), torch.tensor(7.0, requires_grad=True)]
    values += [torch.tensor([8], dtype=torch.int32), torch.tensor(9.0, dtype=torch.bfloat16)]
    with Tracker(run.target) as tracker:
        for step, value in enumerate(values, start=1):
            tracker.log({"x": value}, np.int64(step))
    assert history(run.target, "x") == [(i, float(i)) for i in range(1, 10)]


def test_not_finite(run):
    with Tracker(run.target) as tracker:
        for step, value in enumerate([math.nan, math.inf, -math.inf, 1.0]):
            tracker.log({"x": value}, step)
    values = [v for _, v in history(run.target, "x")]
    assert math.isnan(values[0])
    assert values[1] >= 1.7e308
    assert values[2] <= -1.7e308
    assert values[3] == 1.0


@pytest.mark.parametrize("value", [torch.zeros(2), np.zeros(2), None, "abc"])
def test_not_a_scalar(run, value):
    with Tracker(run.target) as tracker, pytest.raises(UserError, match=r"'x'.*is not a scalar"):
        tracker.log({"x": value}, 0)


@pytest.mark.parametrize("name", ["", "a?b", "a//b", "../a", "/a", "a/", "n" * 251])
def test_bad_names(run, name):
    with Tracker(run.target) as tracker, pytest.raises(UserError, match="metric name"):
        tracker.log({name: 1.0}, 0)


def test_log_is_cheap(run):
    metrics = {f"m{i}": float(i) for i in range(10)}
    with Tracker(run.target) as tracker:
        took = []
        for step in range(500):
            begin = time.perf_counter()
            tracker.log(metrics, step)
            took.append(time.perf_counter() - begin)
    assert statistics.median(took) < 200e-6
    assert len(history(run.target, "m9")) == 500


def test_flush_delivers(run):
    with Tracker(run.target, interval=60) as tracker:
        tracker.log({"x": 1.0}, 0)
        assert tracker.flush(timeout=30)
        assert history(run.target, "x") == [(0, 1.0)]


def test_other_ranks_do_nothing(run):
    tracker = make_tracker(None)
    assert isinstance(tracker, NoTracker)
    assert isinstance(make_tracker(run.target), Tracker)
    public = {name for name in dir(Tracker) if not name.startswith("_")}
    assert public <= {*dir(NoTracker)}
    with tracker:
        tracker.log({"x": 1.0}, 0)
        assert tracker.flush()
        tracker.log_text("x", "x.txt")
        tracker.log_artifact("/nowhere")
        tracker.log_bytes(b"x", "x.bin")
        tracker.log_figure(None, "x.png")
        tracker.log_model(torch.nn.Identity(), torch.zeros(1), "m")
    assert history(run.target, "x") == []


def test_artifacts(run, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.txt").write_text("1")
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    with Tracker(run.target) as tracker:
        tracker.log_artifact(tmp_path / "folder", "data")
        tracker.log_text("{}", "recipe.json")
        tracker.log_figure(figure, "plots/a.png")
        tracker.log_bytes(bytes(range(256)), "bytes/all.bin")
        tracker.log_artifact(tmp_path / "missing")  # must not hold up the others
        tracker.log_text("last", "last.txt")
    client = connect(run.target.uri)
    assert [a.path for a in client.list_artifacts(run.run_id)] == [
        "bytes",
        "data",
        "last.txt",
        "plots",
        "recipe.json",
    ]
    assert Path(client.download_artifacts(run.run_id, "bytes/all.bin")).read_bytes() == bytes(range(256))
    assert [a.path for a in client.list_artifacts(run.run_id, "data/folder")] == ["data/folder/one.txt"]
    assert client.list_artifacts(run.run_id, "plots")[0].file_size > 1000


def test_records_survive_a_file(tmp_path):
    records = [Metric("x", 1.5, 1, 2), Metric("y", math.inf, 1, 2), Artifact("/a", "b")]
    file = tmp_path / "sub" / "f.jsonl"
    append(file, records[:2])
    with file.open("a") as stream:
        stream.write('{"type": "metric", "key": "cu')  # a kill in mid-write
    append(file, records[2:])
    assert read(file) == records


def test_delivery_can_be_repeated(run):
    file = Path(run.target.folder, METRICS_FILE)
    records = [Metric("x", float(v), 1_700_000_000_000 + s, s) for s, v in enumerate([1.0, 2.0, math.nan])]
    for _ in range(2):
        append(file, records)
        assert deliver(file, run.target) == 3
        assert not file.exists()
    assert len(history(run.target, "x")) == 3
    with pytest.raises(UserError, match="does not exist"):
        deliver(file, run.target)


def test_store_away_for_good(run, settings, closed_port, caplog):
    away = replace(run.target, uri=f"http://me:secret@127.0.0.1:{closed_port}")
    tracker = Tracker(away, interval=0.05)
    for step in range(100):
        tracker.log({"x": float(step)}, step)
        time.sleep(0.002)
    tracker.log_text("kept", "a.txt")
    begin = time.monotonic()
    tracker.close(deadline=2.0)
    assert time.monotonic() - begin < 4
    file = Path(away.folder, METRICS_FILE)
    assert [r.step for r in read(file)] == list(range(100))
    assert "did not take 100 metrics and 1 artifacts; they are kept in" in caplog.text
    assert "secret" not in caplog.text
    assert len(caplog.records) <= 3  # an outage is said once for metrics, once for artifacts, and at the end
    with pytest.raises(UserError, match="try again when it is up"):
        deliver(file, away)

    resumed = open_run(settings, name="r", run_id=run.run_id)  # delivers it
    assert history(resumed.target, "x") == [(s, float(s)) for s in range(100)]
    assert [a.path for a in connect(settings.uri).list_artifacts(run.run_id)] == ["a.txt"]
    assert not file.exists()


def test_next_tracker_delivers_what_the_last_could_not(run, closed_port):
    with_store_away = Tracker(replace(run.target, uri=f"http://127.0.0.1:{closed_port}"))
    with_store_away.log({"x": 1.0}, 0)
    with_store_away.close(deadline=0.0)
    with Tracker(run.target) as tracker:
        tracker.log({"x": 2.0}, 1)
    assert history(run.target, "x") == [(0, 1.0), (1, 2.0)]
    assert not Path(run.target.folder, METRICS_FILE).exists()


def test_store_that_never_answers(run):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = Tracker(
            replace(run.target, uri=f"http://127.0.0.1:{silent.getsockname()[1]}"), interval=0.05
        )
        tracker.log({"x": 1.0}, 0)
        time.sleep(0.5)
        begin = time.monotonic()
        assert not tracker.flush(timeout=0.2)  # kept on disk by now: a kill would lose nothing
        assert [r.step for r in read(Path(run.target.folder, METRICS_FILE))] == [0]
        tracker.log({"x": 2.0}, 1)
        tracker.close(deadline=0.5)
        assert time.monotonic() - begin < 2
    assert deliver(run.target.folder, run.target) == 2
    assert history(run.target, "x") == [(0, 1.0), (1, 2.0)]


def test_store_that_answers_500(run, caplog):
    class Broken(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(500, "broken")

        do_GET = do_POST

        def log_message(self, *args) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        tracker = Tracker(
            replace(run.target, uri=f"http://127.0.0.1:{broken.server_address[1]}"), interval=0.05
        )
        tracker.log({"x": 1.0}, 0)
        tracker.close(deadline=3)
        broken.shutdown()
    assert "500" in caplog.text
    assert deliver(run.target.folder, run.target) == 1
    assert history(run.target, "x") == [(0, 1.0)]
