"""Reads runs of a SQLite store from its file: importing MLflow to ask for them takes longer than all else.

The tables are MLflow's own affair. They have held what is read here in the same columns since version 2.4; where one
is missing, or anything else is not as expected, `read` answers None and the caller asks MLflow.
"""

import contextlib
import math
import os
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from ssl_ray.tracking.past import PastRun, address, last_values, seconds
from ssl_ray.tracking.store import database

T = TypeVar("T")

# Of a server with workspaces, which keeps each one's experiments apart.
_WORKSPACES = ("MLFLOW_ENABLE_WORKSPACES", "MLFLOW_WORKSPACE", "MLFLOW_WORKSPACE_STORE_URI")


class Experiment(NamedTuple):
    """An experiment. stage: "active" or "deleted"."""

    experiment_id: str
    name: str
    stage: str


def read(uri: str, what: Callable[[sqlite3.Connection], T]) -> T | None:
    """What a function of this module reads from the store at `uri`, changing nothing.

    None where that is no SQLite file, or one that only MLflow can read.
    """
    file = database(uri)
    if file is None or not file.is_file() or any(map(os.environ.get, _WORKSPACES)):
        return None
    try:
        with contextlib.closing(
            sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            connection.execute("BEGIN")  # all tables as of one moment
            return what(connection)
    except sqlite3.Error:
        return None


def experiments(connection: sqlite3.Connection) -> list[Experiment]:
    """All experiments, also deleted ones."""
    rows = connection.execute("SELECT experiment_id, name, lifecycle_stage FROM experiments")
    return [Experiment(str(number), name, stage) for number, name, stage in rows]


def runs_of(experiment_id: str) -> Callable[[sqlite3.Connection], list[PastRun]]:
    """Reads the runs of an experiment that are not deleted, the newest first."""
    condition = "experiment_id = ? AND lifecycle_stage = 'active'"
    return lambda connection: _runs(connection, condition, int(experiment_id))


def run_called(run_id: str) -> Callable[[sqlite3.Connection], PastRun | None]:
    """Reads the run of this id, None if there is none; deleted ones count."""
    return lambda connection: next(iter(_runs(connection, "run_uuid = ?", run_id)), None)


def artifacts_of(run_id: str) -> Callable[[sqlite3.Connection], tuple[str, str] | None]:
    """Reads where a run's artifacts are, and where all of its experiment's, as MLflow has it."""
    columns = "artifact_uri, artifact_location"
    tables = "runs JOIN experiments USING (experiment_id)"
    return lambda connection: connection.execute(
        f"SELECT {columns} FROM {tables} WHERE run_uuid = ?", (run_id,)
    ).fetchone()


def values_of(run_id: str, metric: str) -> Callable[[sqlite3.Connection], list[tuple[int, float, int]]]:
    """Reads what was logged of a metric, in order of time: step, value, milliseconds since 1970."""

    def query(connection: sqlite3.Connection) -> list[tuple[int, float, int]]:
        rows = connection.execute(
            "SELECT step, value, is_nan, timestamp FROM metrics WHERE run_uuid = ? AND key = ? "
            "ORDER BY timestamp, step, value",
            (run_id, metric),
        )
        return [(step, math.nan if is_nan else value, timestamp) for step, value, is_nan, timestamp in rows]

    return query


def _runs(connection: sqlite3.Connection, condition: str, value: str | int) -> list[PastRun]:
    def belonging(columns: str, table: str, run_id: str = "run_uuid") -> dict[str, list[Any]]:
        """Rows of another table by the run that they belong to."""
        found: dict[str, list[Any]] = defaultdict(list)
        for owner, *row in connection.execute(
            f"SELECT {run_id}, {columns} FROM {table} WHERE {run_id} IN (SELECT run_uuid FROM runs WHERE {condition})",
            (value,),
        ):
            found[owner].append(row)
        return found

    params, tags = belonging("key, value", "params"), belonging("key, value", "tags")
    metrics = belonging("key, value, is_nan", "latest_metrics")
    datasets = belonging(
        "name, digest, dataset_source",
        "(SELECT * FROM inputs JOIN datasets ON source_id = dataset_uuid WHERE destination_type = 'RUN')",
        "destination_id",
    )
    rows = connection.execute(
        "SELECT run_uuid, name, status, start_time, end_time, experiment_id FROM runs "
        f"WHERE {condition} ORDER BY start_time DESC, run_uuid",
        (value,),
    )
    runs: list[PastRun] = []
    for run_id, name, status, start, end, experiment_id in rows:
        named = dict(tags[run_id])
        data, digest, source = next(iter(datasets[run_id]), ("", "", ""))
        runs.append(
            PastRun(
                run_id=run_id,
                name=name or named.get("mlflow.runName") or run_id,
                status=status.lower(),
                start=seconds(start),
                end=seconds(end),
                params=dict(params[run_id]),
                tags=named,
                metrics=last_values({k: math.nan if is_nan else v for k, v, is_nan in metrics[run_id]}),
                data=data,
                digest=digest,
                source=address(source),
                experiment_id=str(experiment_id),
            )
        )
    return runs
