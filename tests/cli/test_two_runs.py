"""Two runs in two terminals: a cluster for each, and one folder, MLflow store and machine for both."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_ray.tracking.client import connect
from tests.runs import TINY, start

pytestmark = pytest.mark.process

# What Ray says where something looks for its cluster and finds two, and where it cannot ask the one it found.
_LOST = ("multiple active Ray instances", "Failed to query Ray Train Controller")


@pytest.fixture
def sessions() -> Iterator[Path]:
    """A folder for what Ray logs; of a short name, for the paths of sockets are limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="two-", dir="/tmp") as folder:
        yield Path(folder)


def test_two_runs_at_a_time(tmp_path: Path, sessions: Path) -> None:
    """Both in one folder, with no store, no token and no folder of runs there before."""
    places = [tmp_path / name for name in ("one", "other")]
    shared = {"RAY_TMPDIR": str(sessions), "HOME": str(tmp_path)}
    shared["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for place in places:
        place.mkdir()  # for its output
    runs = [
        start(
            *(place, "pretrain", "moco", *TINY, "--steps=8", "-v", f"--storage={tmp_path / 'runs'}"),
            env=shared,
        )
        for place in places
    ]
    try:
        statuses = [run.wait(timeout=400) for run in runs]
    finally:
        for run in runs:
            run.kill()
    said = [(place / "out.txt").read_text() + (place / "err.txt").read_text() for place in places]
    assert statuses == [0, 0], said
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(names) == 2
    assert sum(f"run:    {tmp_path}/runs/{name}" in text for name in names for text in said) == 2
    logs = [path for path in sessions.glob("ray/session_2*/logs/*") if path.is_file()]
    assert len({path.parent for path in logs}) == 2
    for text in (*said, *(path.read_text(errors="replace") for path in logs)):
        for lost in _LOST:
            assert lost not in text
    client = connect(shared["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("ssl-ray").experiment_id
    stored = client.search_runs([experiment])
    assert sorted(run.info.run_name for run in stored) == names
    assert {run.info.status for run in stored} == {"FINISHED"}
