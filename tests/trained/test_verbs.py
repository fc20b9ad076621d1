"""`ssl-ray evaluate` and `ssl-ray embed` as typed, on a cluster."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from ssl_ray.data.source import Source, open_dataset
from ssl_ray.evaluation.images import PlainImages
from tests import runs
from tests.trained.run_folder import STEP, write_run

SIZE = 16  # of TINY's views


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A folder with a run in `runs/night`, and the run's algorithm."""
    cwd = tmp_path_factory.mktemp("trained")
    _, algorithm = write_run(cwd / "runs")
    return cwd, algorithm


@torch.no_grad()
def features(algorithm: nn.Module, source: Source) -> Tensor:
    batches = list(PlainImages(source, SIZE, None, 100, {}).batches())
    assert torch.equal(torch.cat([index for _, index in batches]), torch.arange(source.info.num_samples))
    return torch.cat([algorithm.embed([view]) for view, _ in batches])  # type: ignore[operator]


def test_evaluate_a_run(night: tuple[Path, nn.Module], two_cpus: str) -> None:
    cwd, algorithm = night
    options = ["--k=5", "--k=20", "--k=5000", "--temperature=0.07", "--shots=2", "--draws=2"]
    command = ["evaluate", "night", "knn", "linear", "lowshot", "svm", *options, "--json"]
    done = runs.drive(cwd, *command, f"--address={two_cpus}")
    told = runs.summary(done)
    assert done.stderr == "warning: kNN without k = 5000: the bank has 1297 images\n"

    dataset = open_dataset("digits")
    assert dataset.val is not None
    (bank, queries), (classes, labels) = (
        [f(part) for part in (dataset.train, dataset.val)]
        for f in (lambda part: features(algorithm, part), lambda part: part.labels())
    )
    for k in (5, 20):
        neighbours = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(bank.double(), classes)
        expected = neighbours.score(queries.double(), labels)
        assert told["metrics"][f"eval/knn_top1_k{k}_T0.07"] == pytest.approx(expected, abs=0.005)
    rows = [(r["protocol"], r["setting"].partition(",")[0].partition(" as ")[0]) for r in told["results"]]
    assert rows == [
        *[("knn", "k = 5"), ("knn", "k = 20"), ("linear", "SGD"), ("linear", "L-BFGS")],
        *[("lowshot", "2 per class"), ("lowshot", "1 % of labels"), ("lowshot", "10 % of labels")],
        ("svm", "2 per class"),
    ]
    best, few = told["metrics"]["eval/linear_top1_lbfgs"], told["metrics"]["eval/lowshot_top1_n2"]
    assert 0.15 < few < best
    assert (told["run"], told["step"], told["image_size"]) == (str(cwd / "runs/night"), STEP, SIZE)
    assert told["cached"] == {"train": False, "val": False}

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{cwd / 'runs/mlflow.db'}")
    entry = client.get_run(told["mlflow_run_id"])
    assert entry.data.metrics == pytest.approx(told["metrics"])
    assert {m.step for m in client.get_metric_history(entry.info.run_id, "eval/linear_top1_lbfgs")} == {STEP}
    assert entry.info.status == "FINISHED"
    assert len(client.search_runs([entry.info.experiment_id])) == 1

    # Again: without a cluster, for the features are there.
    again = runs.drive(cwd, *command, env={"RAY_ADDRESS": "127.0.0.1:1"})
    told_again = runs.summary(again)
    assert told_again["cached"] == {"train": True, "val": True}
    assert told_again["results"] == told["results"]
    kept = json.loads((cwd / "runs/night/evaluations.json").read_text())["evaluations"]
    assert [e["results"] for e in kept] == [told["results"], told_again["results"]]


@pytest.fixture
def command(night: tuple[Path, nn.Module], two_cpus: str) -> list[str]:
    return [
        "embed",
        "night",
        "--out=features",
        "--batch-size=32",
        "--actors=2",
        "--json",
        f"--address={two_cpus}",
    ]


@pytest.mark.process
def test_embed_goes_on_after_a_kill(night: tuple[Path, nn.Module], command: list[str]) -> None:
    cwd, algorithm = night
    out = cwd / "features"
    process = runs.start(cwd, *command)
    runs.wait_for(lambda: len(list(out.glob("[!_]*.parquet"))) >= 3, "three parts", process)
    process.kill()
    process.wait()
    early = {path.name: path.stat().st_mtime_ns for path in out.glob("[!_]*.parquet")}
    assert json.loads((out / "_metadata.json").read_text())["complete"] is False

    told = runs.summary(runs.drive(cwd, *command))
    assert told["done_before"] >= 32 * 3
    assert {name: (out / name).stat().st_mtime_ns for name in early} == early
    assert told["rows"] == {"train": 1297, "val": 500}
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]
    assert json.loads((out / "_metadata.json").read_text())["complete"] is True

    dataset = open_dataset("digits", holdout=0)
    for split, source in (("train", dataset.train), ("val", dataset.val)):
        assert source is not None
        table = pq.read_table(sorted(out.glob(f"{split}-*.parquet")))
        assert table.column_names == ["index", "path", "label", "feature"]
        assert table["index"].to_pylist() == list(range(source.info.num_samples))
        assert table["label"].to_pylist() == source.labels().tolist()  # type: ignore[union-attr]
        assert table["path"][5].as_py() == source.path(5)
        found = torch.tensor(np.stack(table["feature"].to_pylist()), dtype=torch.float32)
        torch.testing.assert_close(found, features(algorithm, source), rtol=1e-4, atol=1e-5)
    assert len(pq.read_table(out)) == 1797  # the folder as a whole

    nothing = runs.drive(cwd, *[c for c in command if "address" not in c], env={"RAY_ADDRESS": "127.0.0.1:1"})
    assert runs.summary(nothing)["done_before"] == 1797
