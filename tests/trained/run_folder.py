"""A run as training leaves it, without training: recipe, record, a checkpoint, and an entry in a real MLflow store."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_ray.data.source import open_dataset
from ssl_ray.experiments import load
from ssl_ray.recipe import overrides, parse_settings
from ssl_ray.resolve import resolve
from ssl_ray.tracking import open_run, tracking_settings
from ssl_ray.training import checkpoint
from ssl_ray.training.folder import CHECKPOINTS, RunFolder
from tests.runs import TINY

STEP = 7


def write_run(storage: Path, name: str = "night", mlflow: bool = True) -> tuple[RunFolder, nn.Module]:
    """The smallest MoCo on the digits. Returns its folder, and the algorithm that its checkpoint holds."""
    dataset = open_dataset("digits")
    settings = [option.removeprefix("--set=") for option in TINY if option.startswith("--set=")]
    recipe = resolve(overrides(load("moco").SMALL, parse_settings(settings)), dataset.train.info).recipe
    folder = RunFolder.at(str(storage), name)
    record: dict[str, Any] = {
        "name": name,
        "data": "digits",
        "columns": {},
        "holdout": 0.1,
        "dataset_digest": dataset.train.info.digest,
        "python_path": [],
    }
    if mlflow:
        tracking = tracking_settings(
            storage / name, uri=f"sqlite:///{storage / 'mlflow.db'}", experiment="tests"
        )
        with open_run(tracking, name=name) as run:
            record |= {
                "mlflow_run_id": run.run_id,
                "mlflow_experiment_id": run.target.experiment_id,
                "mlflow": {"uri": tracking.uri, "experiment": tracking.experiment},
            }
    folder.begin(recipe, record)
    torch.manual_seed(1)
    algorithm: nn.Module = recipe.algorithm.build()
    directory = storage / name / "checkpoint_000001"
    directory.mkdir()
    checkpoint.save(
        directory,
        algorithm=algorithm,
        optimizer=torch.optim.SGD(algorithm.parameters(), lr=0.1),
        recipe=recipe,
        next_step=STEP,
        evaluations=[],
    )
    snapshot = {"checkpoint_results": [{"checkpoint_dir_name": directory.name}]}
    (storage / name / CHECKPOINTS).write_text(json.dumps(snapshot))
    return folder, algorithm.eval()
