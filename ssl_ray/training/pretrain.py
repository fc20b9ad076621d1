"""From what a user asked for to a finished, tracked, judged run."""

import os
import platform
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ssl_ray import __version__
from ssl_ray.console import Console
from ssl_ray.data.source import Dataset, open_dataset
from ssl_ray.errors import UserError
from ssl_ray.experiments import load_recipe
from ssl_ray.recipe import Recipe, overrides, parse_settings
from ssl_ray.resolve import check_workers, resolve
from ssl_ray.tracking import default_tags, make_tracker, open_run, prepare, tracking_settings, ui_command
from ssl_ray.training import artifacts
from ssl_ray.training.folder import RunFolder


@dataclass(frozen=True)
class Request:
    """What the user asked for. Fields are the options of `ssl-ray pretrain`; a list of "path=value" in `settings`."""

    recipe: str | None = None
    data: str = "fashion"
    workers: int = 1
    settings: Sequence[str] = ()
    scale: str = "auto"
    name: str | None = None
    storage: str = "runs"
    resume: str | None = None
    columns: dict[str, str | None] = field(default_factory=dict)
    holdout: float = 0.1
    address: str | None = None
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None
    as_json: bool = False
    verbose: bool = False


def pretrain(request: Request, console: Console) -> dict[str, Any]:
    """Runs a request to its end and says how it went. Returns what `--json` prints.

    Raises UserError for whatever the user can mend, before any worker starts where that can be known.
    """
    started = time.monotonic()
    folder, recipe, dataset, record = _continued(request) if request.resume else _fresh(request, console)
    check_workers(recipe, request.workers)
    settings = tracking_settings(folder.local or os.path.join("runs", folder.name))

    preparing = prepare(settings)  # MLflow's first use of a store takes seconds: while Ray starts
    from ssl_ray.training import cluster
    from ssl_ray.training.run import run

    cluster.connect(request.address, verbose=request.verbose)
    try:
        resources = cluster.fit_workers(request.workers, request.cpus_per_worker, request.gpus_per_worker)
        preparing.join()
        info = dataset.train.info
        tracked = open_run(
            settings,
            name=folder.name,
            params=recipe.to_json(),
            tags=default_tags() | {"world_size": str(request.workers), "dataset_digest": info.digest},
            run_id=record.get("mlflow_run_id"),
        )
        folder.begin(recipe, record | {"mlflow_run_id": tracked.run_id, "workers": request.workers})
        with tracked, make_tracker(tracked.target) as tracker:
            tracked.log_dataset(info.name, info.digest, request.data)
            artifacts.at_start(tracker, recipe, dataset)
            result = run(
                recipe,
                dataset,
                folder,
                workers=request.workers,
                resources=resources,
                tracking=tracked.target,
                console=console,
                verbose=request.verbose,
                on_first_step=lambda: console.detail(
                    f"first steps logged {time.monotonic() - started:.1f} s after the command"
                ),
            )
            artifacts.at_end(tracker, recipe, result)
        if result.status != "finished":
            tracked.finish("KILLED")
    finally:
        cluster.disconnect()

    summary = {
        "run": folder.name,
        "status": result.status,
        "folder": folder.uri,
        "checkpoint": result.checkpoint,
        "mlflow_run_id": tracked.run_id,
        "seconds": round(time.monotonic() - started, 1),
        **result.summary,
    }
    if request.as_json:
        console.json_line(summary)
    else:
        _say(console, summary, ui_command(tracked.target))
    return summary


def _fresh(request: Request, console: Console) -> tuple[RunFolder, Recipe, Dataset, dict[str, Any]]:
    assert request.recipe is not None
    dataset = open_dataset(request.data, holdout=request.holdout, **request.columns)
    loaded = load_recipe(request.recipe, scale=request.scale, info=dataset.train.info)
    resolved = resolve(overrides(loaded.recipe, parse_settings(request.settings)), dataset.train.info)
    recipe = resolved.recipe
    name = request.name or f"{recipe.name}-{dataset.train.info.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = RunFolder.at(request.storage, name)
    record: dict[str, Any] = {
        "name": name,
        "data": request.data,
        "columns": request.columns,
        "holdout": request.holdout,
        "dataset_digest": dataset.train.info.digest,
        "ssl_ray": __version__,
        "python": platform.python_version(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if folder.exists():
        if folder.recipe() != recipe:
            raise UserError(
                f"name: run {name!r} exists in {folder.storage} with another recipe; choose another --name, or "
                f"continue that one with --resume {name}"
            )
        record = folder.record()
    console.print(
        f"{recipe.name} ({loaded.origin}) on {request.data}: {dataset.train.info.num_samples:,} images"
    )
    if dataset.note:
        console.print(dataset.note)
    for path, origin in resolved.origins.items():
        console.detail(f"{path}: {origin}")
    return folder, recipe, dataset, record


def _continued(request: Request) -> tuple[RunFolder, Recipe, Dataset, dict[str, Any]]:
    assert request.resume is not None
    folder = RunFolder.find(request.resume, request.storage)
    record, recipe = folder.record(), folder.recipe()
    if request.recipe is not None and request.recipe != recipe.name:
        raise UserError(
            f"resume: run {folder.name!r} trains {recipe.name}, not {request.recipe}; leave the name out"
        )
    dataset = open_dataset(record["data"], holdout=record["holdout"], **record["columns"])
    if dataset.train.info.digest != record["dataset_digest"]:
        raise UserError(
            f"resume: {record['data']} is not what it was when run {folder.name!r} began (digest "
            f"{dataset.train.info.digest}, was {record['dataset_digest']}); put the data back, or start a new run"
        )
    return folder, recipe, dataset, record


def _say(console: Console, summary: dict[str, Any], mlflow_ui: str) -> None:
    evaluations = summary.get("evaluations") or []
    judged = [e for e in evaluations if "val/knn_top1" in e]
    if judged:
        rows = []
        if (pixels := judged[0].get("baseline/raw_pixels_knn_top1")) is not None:
            rows.append(("raw pixels", pixels))
        rows.append(("untrained network", judged[0]["val/knn_top1"]))
        rows.append((f"after epoch {judged[-1]['epoch']}", judged[-1]["val/knn_top1"]))
        console.table(
            "kNN top-1 on held-out images", ["features", "top-1 %"], [(n, f"{100 * v:.1f}") for n, v in rows]
        )
    if summary["status"] != "finished":
        console.print(f"{summary['status']} at step {summary.get('steps', '?')}; continue with:")
        console.print(f"  ssl-ray pretrain --resume {shlex.quote(summary['folder'])}")
    console.print(f"run:    {summary['folder']}")
    console.print(f"MLflow: {mlflow_ui}")
