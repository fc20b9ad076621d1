import os
import pickle
import subprocess
import sys

import pytest

from ssl_ray.errors import UserError
from ssl_ray.tracking import TrackingTarget, redact, tracking_settings, ui_command


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.chdir(tmp_path)


def test_defaults_are_absolute(tmp_path):
    settings = tracking_settings("runs/a")
    assert settings.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert settings.experiment == "ssl-ray"
    assert settings.artifact_location == f"file://{tmp_path}/mlruns/ssl-ray"
    assert settings.folder == f"{tmp_path}/runs/a"


def test_environment_and_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///sub/other.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "my/experiment")
    settings = tracking_settings("r")
    assert settings.uri == f"sqlite:///{tmp_path}/sub/other.db"
    assert settings.experiment == "my/experiment"
    assert settings.artifact_location == f"file://{tmp_path}/sub/mlruns/my_experiment"
    settings = tracking_settings("r", uri="http://host:5000", experiment="x")
    assert (settings.uri, settings.experiment, settings.artifact_location) == ("http://host:5000", "x", None)


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:"])
def test_stores_mlflow_cannot_share(uri):
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI.*use sqlite:////absolute"):
        tracking_settings("r", uri=uri)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://u:p@ss@db/x?sslmode=a", "postgresql+psycopg2://***@db/x?sslmode=a"),
        ("no http://a:b@c, nor https://d@e", "no http://***@c, nor https://***@e"),
        ("mysql://db/x?password=abc&y=1", "mysql://db/x?password=***&y=1"),
        ("s3://AKIA:wJal/rXU+tn@bucket/x", "s3://***@bucket/x"),
        ("s3:/AKIA:wJal/rXU@bucket/x", "s3:/***@bucket/x"),  # as a path
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_redact(text, shown):
    assert redact(text) == shown


def test_target_is_small_picklable_and_discreet():
    target = TrackingTarget("http://me:secret@host", "1", "abc", "/runs/a")
    assert pickle.loads(pickle.dumps(target)) == target
    assert len(pickle.dumps(target)) < 500
    assert "secret" not in repr(target)
    assert "secret" not in repr(tracking_settings("r", uri=target.uri))


def test_ui_command():
    local = TrackingTarget("sqlite:////a b/mlflow.db", "1", "abc", "/r")
    assert ui_command(local) == "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'"
    server = TrackingTarget("http://me:secret@host:5000/", "1", "abc", "/r")
    assert ui_command(server) == "http://***@host:5000/#/experiments/1/runs/abc"


@pytest.mark.process
def test_import_is_light():
    code = (
        "import sys, ssl_ray.tracking; "
        "print(*sorted({'mlflow', 'torch', 'ray', 'numpy', 'pandas'} & {m.partition('.')[0] for m in sys.modules}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))},
    )
    assert out.stdout.strip() == ""
