"""A run's folder and its MLflow run: where it is tracked, and how it is opened there, also when nobody answers."""

import os
from collections.abc import Callable
from typing import Any

from ssl_ray.console import Console
from ssl_ray.errors import UserError
from ssl_ray.job import submission_id
from ssl_ray.recipe import Recipe
from ssl_ray.tracking import (
    FOLDER,
    StoreAway,
    TrackedRun,
    TrackingSettings,
    TrackingTarget,
    default_tags,
    open_run,
    tracking_settings,
)
from ssl_ray.tracking.client import within
from ssl_ray.training.folder import RunFolder

ANSWER_S = 10.0


def tracking_of(folder: RunFolder, record: dict[str, Any]) -> TrackingSettings:
    """Where MLflow is: the environment says, else where the run was tracked before, else the default.

    What was tracked before has a store already, wherever that is now. Raises UserError where that is not known.
    """
    before = record.get("mlflow", {})
    known = not os.environ.get("MLFLOW_TRACKING_URI") and "uri" in before
    if known and "***" in before["uri"]:
        raise UserError(
            f"MLFLOW_TRACKING_URI: run {folder.name!r} is tracked at {before['uri']}, of which the password is not "
            "kept; set the variable to the whole address"
        )
    local = folder.local or os.path.join("runs", folder.name)
    must_exist = known or "mlflow_run_id" in record
    return tracking_settings(local, **(before if known else {}), must_exist=must_exist)


def target_of(settings: TrackingSettings, record: dict[str, Any]) -> TrackingTarget:
    """The MLflow run that a record names."""
    return TrackingTarget(
        settings.uri, record["mlflow_experiment_id"], record["mlflow_run_id"], settings.folder
    )


def open_tracked(
    settings: TrackingSettings,
    recipe: Recipe,
    folder: RunFolder,
    record: dict[str, Any],
    console: Console,
    *,
    tags: dict[str, str],
) -> TrackedRun:
    """The run in MLflow. One that is known there already goes on without it; to begin, MLflow has to answer."""
    submitted = submission_id()
    try:
        return open_run(
            settings,
            name=folder.name,
            params=recipe.to_json(),
            tags=default_tags()
            | {FOLDER: folder.uri}
            | ({"ray.submission_id": submitted} if submitted else {})
            | tags,
            run_id=record.get("mlflow_run_id"),
        )
    except StoreAway as error:
        if "mlflow_run_id" not in record:
            raise
        console.warn(f"{error}; until then what the run logs is kept in {settings.folder}")
        return TrackedRun(target_of(settings, record))


def tag_alarms(tracked: TrackedRun, alarms: list[str], console: Console) -> None:
    """Tag `collapse` of the MLflow run: what the last evaluation warned of, or that an earlier warning is over."""
    tags = {"collapse": "; ".join(alarms) or "none"}
    unless_away(console, "the tag collapse", lambda: tracked.set_tags(tags))


def unless_away(console: Console, what: str, log: Callable[[], None]) -> None:
    """Logs what is not worth a run, nor a long wait: metrics and artifacts are delivered later, this is not."""
    try:
        within(ANSWER_S, log)
    except Exception as error:
        console.detail(f"MLflow did not take {what}: {error}")
