"""PBT and Optuna from the command line, on two CPUs: one trial at a time, each a real training."""

import json
from pathlib import Path

from ssl_ray.tracking.client import connect
from tests.runs import TINY, drive, summary

RATES = "--search=optimization.base_lr=loguniform(1e-6, 0.1)"


def test_pbt_hands_the_better_trials_weights_on(tmp_path: Path, two_cpus: str) -> None:
    options = ["--scheduler=pbt", "--trials=2", "--max-epochs=2", "--seed=1", "--name=pbt", "--json"]
    told = summary(drive(tmp_path, "tune", "moco", *TINY, RATES, *options, f"--address={two_cpus}"))
    assert [t["status"] for t in told["trials"]] == ["finished"] * 2
    made = {
        file.parent.name: json.loads(file.read_text())
        for file in (tmp_path / "runs" / "pbt").glob("trial-*/run.json")
    }
    (taker,) = [name for name, record in made.items() if record.get("init_from")]
    donor = Path(made[taker]["init_from"]).parent.name
    assert {taker.removesuffix("-g1"), donor} == {"trial-00000", "trial-00001"}
    mine, theirs = made[taker]["evaluations"], made[donor]["evaluations"]
    assert [e["epoch"] for e in mine] == [e["epoch"] for e in theirs] == [0.0, 1.0, 2.0]
    assert mine[:2] == theirs[:2], "its curve begins with the other's"
    replaced = made[taker.removesuffix("-g1")]["evaluations"]
    assert replaced[-1]["val/knn_top1"] <= theirs[1]["val/knn_top1"]
    values = {t["run"]: t["values"]["optimization.base_lr"] for t in told["trials"]}
    assert values[taker] != values[donor]

    client = connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_run(told["mlflow_run_id"]).info.experiment_id])
    assert len(runs) == 3, "one for the search and one for each trial, whatever it took over"
    assert {r.info.status for r in runs} == {"FINISHED"}


def test_optuna_searches_to_the_end(tmp_path: Path, two_cpus: str) -> None:
    options = ["--scheduler=optuna", "--trials=2", "--max-epochs=1", "--seed=1", "--name=optuna", "--json"]
    told = summary(drive(tmp_path, "tune", "moco", *TINY, RATES, *options, f"--address={two_cpus}"))
    assert [t["status"] for t in told["trials"]] == ["finished"] * 2
    first, second = (t["values"]["optimization.base_lr"] for t in told["trials"])
    assert first != second
    assert (tmp_path / "runs" / "optuna" / "best.json").exists()
