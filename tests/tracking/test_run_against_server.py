"""A run whose MLflow server is killed under it: the run ends well, and MLflow gets everything in the end."""

import json
import os
from pathlib import Path

from ssl_ray.tracking.client import connect
from tests.runs import TINY, checkpoints, drive, start, summary, wait_for
from tests.tracking.conftest import Server

STEPS = 3 * (1297 // 32)


def test_the_server_is_killed_in_mid_run(server: Server, tmp_path: Path, two_cpus: str) -> None:
    env = {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_EXPERIMENT_NAME": "outage"}
    arguments = [*TINY, "--epochs=3", "--set=training.checkpoint_steps=20", "--json"]
    there = f"--address={two_cpus}"
    process = start(tmp_path, "pretrain", "moco", *arguments, "--name=r", "--steps=40", there, env=env)
    folder = tmp_path / "runs" / "r"
    wait_for(lambda: checkpoints(folder), "first checkpoint", process)
    server.kill()
    try:
        assert process.wait(timeout=300) == 0, (tmp_path / "err.txt").read_text()
        assert json.loads((tmp_path / "out.txt").read_text())["steps"] == 40
        # Away for all of what follows: known to MLflow already, the run goes on without.
        without = drive(tmp_path, "pretrain", "--resume=r", "--json", f"--steps={STEPS}", there, env=env)
    finally:
        server.start()

    said = summary(without)
    assert said["status"] == "finished"
    assert said["steps"] == STEPS
    first, *_ = without.stderr.splitlines()
    assert first.startswith(f"warning: MLflow at {server.uri} ")
    assert first.endswith(f"; until then what the run logs is kept in {folder}")
    assert "Traceback" not in without.stderr
    warnings = (tmp_path / "err.txt").read_text().splitlines()
    assert all(line.startswith(f"warning: MLflow at {server.uri} ") for line in warnings), warnings
    missed = [line for line in warnings if "does not take metrics" in line]
    assert len(missed) == 1, "an outage is reported once"
    assert str(folder / "metrics-undelivered.jsonl") in missed[0]
    assert any("was not told that the run FINISHED" in line for line in warnings)
    assert {path.name for path in folder.glob("*-undelivered.jsonl")} == {
        f"{what}-undelivered.jsonl" for what in ("metrics", "artifacts", "ending")
    }

    again = drive(tmp_path, "pretrain", "--resume=r", "--json", env=env)
    assert summary(again) == said
    assert list(folder.glob("*-undelivered.jsonl")) == []
    client = connect(server.uri)
    record = client.get_run(said["mlflow_run_id"])
    assert record.info.status == "FINISHED"
    logged = [point.step for point in client.get_metric_history(record.info.run_id, "train/loss")]
    assert logged == [*range(5, STEPS, 5), STEPS]
    judged = {point.step for point in client.get_metric_history(record.info.run_id, "val/knn_top1")}
    assert judged == {e["step"] for e in said["evaluations"]}
    assert {f.path for f in client.list_artifacts(record.info.run_id)} >= {
        "recipe.json",
        "preview.png",
        "loss.png",
    }
    models = client.search_logged_models([record.info.experiment_id])
    # Of step 40 and of the last.
    assert [(model.name, model.status) for model in models] == 2 * [("backbone", "READY")]
    assert os.listdir(folder / "models") == [], "removed once delivered"
