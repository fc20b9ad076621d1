"""`ssl-ray tune` as users run it: what it prints, what it leaves behind, and that nothing is left taken."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest

from ssl_ray.tracking.client import connect
from tests.runs import NOBODY, TINY, drive, environment, summary

# Two workers for a trial and two CPUs in all: trials that did not wait for each other would stand still.
SEARCH = [
    "moco",
    *TINY,
    "--workers=2",
    "--trials=4",
    "--max-epochs=3",
    "--name=search",
    # The last value makes a trial fail before its first step: the others go on.
    "--search=optimization.base_lr=choice(0.03, 1e-6)",
    "--search=evaluation.k=choice(20, 5000)",
]


def free_cpus(address: str) -> float:
    """CPUs of a cluster that nobody holds, as a process of its own sees them, once they are what they will be."""
    code = (
        "import ray, sys, time\n"
        "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
        "for _ in range(60):\n"
        "    free = ray.available_resources().get('CPU', 0.0)\n"
        "    if free == ray.cluster_resources()['CPU']: break\n"
        "    time.sleep(0.5)\n"
        "print(free)"
    )
    env = environment(Path("/")) | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", code, address],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def searched(here: Path, two_cpus: str) -> dict[str, Any]:
    return summary(drive(here, "tune", *SEARCH, "--json", f"--address={two_cpus}"))


def test_trials_of_two_workers_on_two_cpus_all_end(searched: dict[str, Any]) -> None:
    assert searched["status"] == "finished"
    assert len(searched["trials"]) == 4
    statuses = {t["status"] for t in searched["trials"]}
    assert statuses <= {"finished", "stopped", "failed"}
    for trial in searched["trials"]:
        failed = trial["values"]["evaluation.k"] == 5000
        assert (trial["status"] == "failed") == failed, trial
        assert not failed or "evaluation.k 5000" in trial["cause"]
    assert searched["best"]["score"] == max(t["score"] for t in searched["trials"] if t["status"] != "failed")


@pytest.mark.process
def test_nothing_is_left_taken(searched: dict[str, Any], two_cpus: str) -> None:
    assert free_cpus(two_cpus) == 2


def test_mlflow_has_the_search_and_in_it_the_trials(searched: dict[str, Any], here: Path) -> None:
    client = connect(f"sqlite:///{here / 'mlflow.db'}")
    parent = client.get_run(searched["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["search.optimization.base_lr"] == "choice(0.03, 1e-06)"
    assert parent.data.metrics["best/knn_top1"] == pytest.approx(searched["best"]["score"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    ended = {c.data.tags["search.trial"]: c.info.status for c in children}
    started = {t["trial"]: t["status"] for t in searched["trials"] if t["score"] is not None}
    assert ended == {
        name: {"finished": "FINISHED", "stopped": "KILLED"}[status] for name, status in started.items()
    }
    for name in ("parallel_coordinates.png", "learning_curves.png"):
        assert min(cv2.imread(client.download_artifacts(parent.info.run_id, name)).shape[:2]) > 200


def test_the_best_recipe_can_be_pretrained(searched: dict[str, Any], here: Path, two_cpus: str) -> None:
    best = json.loads(Path(searched["best_recipe"]).read_text())
    values = next(t["values"] for t in searched["trials"] if t["trial"] == searched["best"]["trial"])
    assert best["optimization"]["base_lr"] == values["optimization.base_lr"]
    done = drive(
        here,
        "pretrain",
        searched["best_recipe"],
        "--data=digits",
        "--steps=1",
        "--json",
        f"--address={two_cpus}",
    )
    assert summary(done)["steps"] == 1


def test_a_finished_search_is_not_run_again(searched: dict[str, Any], here: Path) -> None:
    again = drive(here, "tune", "--resume=search", "--json")
    assert summary(again) == searched


def test_a_search_is_shown_for_a_cluster_that_is_elsewhere(tmp_path: Path) -> None:
    done = drive(
        tmp_path,
        "tune",
        "mae",
        "--trials=20",
        "--dry-run",
        "--cluster=gpus=16,cpus=128,nodes=4",
        "--json",
        store=False,
    )
    said = summary(done)
    assert (said["trials"], said["concurrent"], said["limit"]) == (20, 16, "GPUs")
    assert (said["gpus_per_trial"], said["cpus_for_data"]) == (1, 112)
    assert said["rungs"] == [2, 6, 18]
    assert said["most_trial_epochs"] == 400
    assert said["space"]["optimization.base_lr"] == "loguniform(0.0002, 0.01)"
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "tune: name what to tune"),
        (["mea"], "did you mean 'mae'"),
        (["mae", "--scheduler=hyperband"], "scheduler: 'hyperband'"),
        (["mae", "--search=optimization.base_rl=uniform(0,1)"], "did you mean 'base_lr'"),
        (["swav", "--set=views.small_min_scale=0.9"], "views.small_min_scale: 0.9 is more than"),
        (["mae", "--objective=loss"], "there are knn_top1, rankme, embedding_std"),
        (["mae", "--time-budget=soon"], "write a number and s, m, h or d"),
        (["mae", "--cluster=gpus=8"], "goes with --dry-run"),
        (["mae", "--dry-run", "--cluster=gpu=8"], "write totals"),
        (["mae", "--resume=x"], "leave out RECIPE"),
        (["--resume=x"], "no search 'x'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = drive(tmp_path, "tune", *arguments, store=False, env={"RAY_ADDRESS": NOBODY})
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
