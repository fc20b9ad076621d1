"""A real `mlflow server` that is killed, frozen and restarted while a loop logs to it."""

import signal
import time
from pathlib import Path

from ssl_ray.tracking import Tracker, deliver, open_run, tracking_settings, ui_command
from ssl_ray.tracking.client import connect
from ssl_ray.tracking.records import METRICS_FILE
from tests.tracking.conftest import Server, history


def train(tracker: Tracker, steps: range) -> float:
    """Logs four metrics at each step of 10 ms; the longest a `log` took."""
    longest = 0.0
    for step in steps:
        begin = time.perf_counter()
        tracker.log({"loss": 1 / (step + 1), "lr": 0.1, "a": float(step), "b": -float(step)}, step)
        longest = max(longest, time.perf_counter() - begin)
        time.sleep(0.01)
    return longest


def open_on(server: Server, folder: Path):
    return open_run(
        tracking_settings(folder, uri=server.uri, experiment=folder.name), name="r", params={"a": {"b": 1}}
    )


def test_artifacts_and_address(server, tmp_path):
    with open_on(server, tmp_path) as run, Tracker(run.target) as tracker:
        tracker.log_text("hello", "sub/a.txt")
        assert ui_command(run.target).startswith(
            f"{server.uri}/#/experiments/{run.target.experiment_id}/runs/"
        )
    assert [p.read_text() for p in server.folder.rglob("a.txt")] == ["hello"]


def test_killed_and_restarted(server, tmp_path, caplog):
    run = open_on(server, tmp_path)
    tracker = Tracker(run.target, interval=0.2)
    longest = train(tracker, range(100))
    server.kill()
    longest = max(longest, train(tracker, range(100, 300)))
    server.start()
    longest = max(longest, train(tracker, range(300, 400)))
    tracker.close(deadline=60)
    assert longest < 0.25  # a request that blocked would take a second or more
    for key in ("loss", "lr", "a", "b"):
        assert [step for step, _ in history(run.target, key)] == list(range(400))
    assert history(run.target, "a")[-1] == (399, 399.0)
    assert "does not take metrics" in caplog.text
    assert "is back" in caplog.text
    assert not Path(run.target.folder, METRICS_FILE).exists()
    run.finish()


def test_frozen(server, tmp_path, monkeypatch):
    """Requests time out and are sent again; the thawed server then takes all of them, and keeps one."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    run = open_on(server, tmp_path)
    tracker = Tracker(run.target, interval=0.2)
    longest = train(tracker, range(50))
    server.signal(signal.SIGSTOP)
    try:
        longest = max(longest, train(tracker, range(50, 450)))
    finally:
        server.signal(signal.SIGCONT)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    tracker.close(deadline=60)
    assert longest < 0.25  # a request that blocked would take a second or more
    assert [step for step, _ in history(run.target, "loss")] == list(range(450))
    run.finish()


def test_dead_at_the_end(server, tmp_path, caplog):
    run = open_on(server, tmp_path)
    tracker = Tracker(run.target, interval=0.2)
    train(tracker, range(20))
    assert tracker.flush(timeout=20)
    server.kill()
    try:
        train(tracker, range(20, 60))
        begin = time.monotonic()
        tracker.close(deadline=3)
        run.finish("FINISHED", deadline=5)
        assert time.monotonic() - begin < 15
    finally:
        server.start()
    assert "160 metrics" in caplog.text
    assert deliver(run.target.folder, run.target) == 161  # and the ending
    assert [step for step, _ in history(run.target, "loss")] == list(range(60))
    assert connect(server.uri).get_run(run.run_id).info.status == "FINISHED"
