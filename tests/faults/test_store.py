"""A run whose data, run folder and MLflow artifacts are in an object store that fails now and then."""

from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from ssl_ray.data.prepare import prepare_dataset
from ssl_ray.data.source import open_dataset
from ssl_ray.tracking.client import connect
from ssl_ray.training.folder import CHECKPOINTS, RunFolder
from tests.faulty_s3 import Fault, FaultyS3
from tests.runs import TINY, run, state, summary
from tests.training import local

pytestmark = pytest.mark.cluster

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCY"
TRAIN = ["moco", *TINY[1:], "--steps=30", "--set=training.checkpoint_steps=10"]
SHARD, UPLOAD = "GET .*train/shard-00000", "PUT .*run/checkpoint_.*/checkpoint.pt"


def test_a_run_on_s3_equals_one_on_local_files(
    tmp_path: Path, s3: tuple[Any, str], faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = local.train(local.job_of(*TRAIN, "--data=digits"), tmp_path / "local")

    client, query = s3
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    prepare_dataset(open_dataset("digits"), f"s3://pictures/digits?{query}", shard_bytes=100_000)
    here = tmp_path / "here"
    here.mkdir()
    # An experiment whose artifacts MLflow's own client of S3 writes.
    store = connect(f"sqlite:///{here / 'mlflow.db'}")
    store.create_experiment("on S3", "s3://pictures/mlflow")
    faulty.plan(
        Fault(SHARD, "slow down", 2, skip=4),
        Fault(SHARD, "cut", after=5000),
        Fault(SHARD, "silence"),
        Fault(SHARD, "short", after=50, skip=2),
        # The first checkpoint is cut off on its way, and sent again; the second is refused, for which there is no
        # second try: training goes on without it. The way back of the last is cut off, too.
        Fault(UPLOAD, "cut", after=10_000),
        Fault(UPLOAD, "denied", skip=1),
        Fault("GET .*run/checkpoint_.*/checkpoint.pt", "cut", after=10_000),
        Fault("PUT .*run/run.json", "internal error"),
        Fault("PUT .*mlflow", "slow down"),
    )
    planned = sorted(fault.kind for fault in faulty.faults for _ in range(fault.times))
    done = run(
        here,
        "pretrain",
        *TRAIN,
        "--name=run",
        "--json",
        f"--data=s3://pictures/digits?{faulty.query}",
        f"--storage=s3://pictures/runs?{faulty.query}",
        env={"MLFLOW_S3_ENDPOINT_URL": f"http://{faulty.address}", "MLFLOW_EXPERIMENT_NAME": "on S3"},
    )
    ours = summary(done)
    assert sorted(faulty.met()) == planned
    assert ours["evaluations"] == expected.summary["evaluations"]

    folder = RunFolder.at(f"s3://pictures/runs?{query}", "run")
    kept = folder.read(CHECKPOINTS)["checkpoint_results"]
    assert [result["metrics"]["step"] for result in kept] == [10, 30]
    # Of step 10, cut off, and again; of step 20, refused; of step 30.
    assert faulty.count(UPLOAD) == 4
    (refused,) = [line for line in done.stderr.splitlines() if "cannot be saved" in line]
    assert refused.startswith("warning: checkpoint: step 20 cannot be saved: ")
    assert refused.endswith("; training goes on, the last checkpoint is from before")
    bucket = here / "bucket"
    bucket.mkdir()
    fs.copy_files("pictures", str(bucket), source_filesystem=client)
    run_folder = bucket / "runs" / "run"
    listed = {result["checkpoint_dir_name"] for result in kept}
    assert {path.parent.name for path in run_folder.glob("*/checkpoint.pt")} == listed
    local.assert_same(state(run_folder / kept[-1]["checkpoint_dir_name"]), expected.last["algorithm"])
    assert list((bucket / "mlflow").glob("*/artifacts/recipe.json"))

    written = {str(path): path.read_bytes() for path in here.rglob("*") if path.is_file()}
    written |= {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    assert str(run_folder / "run.json") in written
    assert [name for name, content in written.items() if SECRET.encode() in content] == []
