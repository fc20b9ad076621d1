"""A search whose driver is killed goes on where it was."""

import json
import signal
from pathlib import Path

import pytest

from ssl_ray.tracking.client import connect
from tests.runs import TINY, drive, start, summary, wait_for

pytestmark = pytest.mark.process


def test_a_killed_search_keeps_what_it_has(tmp_path: Path, two_cpus: str) -> None:
    there = f"--address={two_cpus}"
    process = start(
        *(tmp_path, "tune", "moco", *TINY, "--scheduler=random", "--trials=3", "--max-epochs=2"),
        *("--name=killed", "--json", there),
    )
    folder = tmp_path / "runs" / "killed"

    def records() -> dict[str, dict[str, object]]:
        found = {}
        for file in folder.glob("trial-*/run.json"):
            try:
                found[file.parent.name] = json.loads(file.read_text())
            except json.JSONDecodeError:
                continue  # being written
        return found

    def second_is_judged() -> bool:
        finished = [r for r in records().values() if "summary" in r]
        return bool(finished) and any("summary" not in r and r.get("evaluations") for r in records().values())

    wait_for(second_is_judged, "second trial's evaluation", process, timeout=400)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {name: record for name, record in records().items() if "summary" in record}
    assert 1 <= len(before) < 3

    resumed = summary(drive(tmp_path, "tune", "--resume=killed", "--json", there))
    assert [t["status"] for t in resumed["trials"]] == ["finished"] * 3
    after = records()
    assert len(after) == 3
    for name, record in before.items():
        assert after[name] == record, "a finished trial is not run again"
    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_run(resumed["mlflow_run_id"]).info.experiment_id])
    assert len(runs) == 4, "one MLflow run for the search and one for each trial, also after a restart"
    assert {r.info.status for r in runs} == {"FINISHED"}
