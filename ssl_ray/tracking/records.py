"""What is sent to MLflow: records that wait in memory or, as JSON lines, in the run's folder.

Sending is repeatable. MLflow drops a metric that repeats key, value, step and timestamp of one it has, so a batch
whose answer was lost is simply sent again. Artifacts overwrite themselves; a model is found again by its tag.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ssl_ray.errors import UserError
from ssl_ray.redact import redact
from ssl_ray.tracking.client import connect, import_mlflow, reason
from ssl_ray.tracking.store import StoreGone, way_back
from ssl_ray.tracking.target import TrackingTarget

logger = logging.getLogger("ssl_ray.tracking")

METRICS_PER_BATCH, TAG_CHARACTERS = 1000, 8000  # MLflow's limits
ERROR = "error"
"""Tag: why a run failed."""
METRICS_FILE = "metrics-undelivered.jsonl"
ARTIFACTS_FILE = "artifacts-undelivered.jsonl"
ENDING_FILE = "ending-undelivered.jsonl"


class Metric(NamedTuple):
    """One value of one metric; timestamp in milliseconds since the epoch, taken when it was logged."""

    key: str
    value: float
    timestamp: int
    step: int


class Artifact(NamedTuple):
    """A local file or folder that belongs under `artifact_path` of the run ("" is its root)."""

    path: str
    artifact_path: str


class Model(NamedTuple):
    """A saved model in a local folder, which is removed once MLflow has it. `token` finds it again on a retry."""

    path: str
    name: str
    step: int
    token: str


class Ending(NamedTuple):
    """The run's last status, and when it was reached (ms); of a run that failed why, for its tag `error`."""

    status: str
    end_time: int
    reason: str = ""


Record: TypeAlias = Metric | Artifact | Model | Ending
_TYPES: dict[str, type[Record]] = {t.__name__.lower(): t for t in (Metric, Artifact, Model, Ending)}


def append(file: Path, records: Iterable[Record]) -> None:
    """Adds records to a file of JSON lines; NaN and infinities are written as Python's json does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"type": type(record).__name__.lower(), **record._asdict()}) for record in records]
    with file.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read() != b"\n":  # a kill cut the last line short
                lines.insert(0, "")
        stream.write("".join(f"{line}\n" for line in lines).encode())


def read(file: Path) -> list[Record]:
    """The records of a file; a last line cut short by a kill is left out."""
    records: list[Record] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            continue
        records.append(_TYPES[fields.pop("type")](**fields))
    return records


def send(client: Any, target: TrackingTarget, records: Sequence[Record]) -> None:
    """Sends records to the target's run. Raises what MLflow raises; sending the same records again is harmless."""
    entities = import_mlflow("mlflow.entities")
    metrics = [entities.Metric(*r) for r in records if isinstance(r, Metric)]
    for start in range(0, len(metrics), METRICS_PER_BATCH):
        client.log_batch(target.run_id, metrics=metrics[start : start + METRICS_PER_BATCH])
    for record in records:
        if isinstance(record, Artifact | Model) and not Path(record.path).exists():
            logger.warning("artifact %s is gone and cannot be delivered to MLflow", record.path)
        elif isinstance(record, Artifact):
            client.log_artifact(target.run_id, record.path, record.artifact_path or None)
        elif isinstance(record, Model):
            _send_model(client, target, record)
        elif isinstance(record, Ending):
            if record.reason:
                client.set_tag(target.run_id, ERROR, redact(record.reason)[:TAG_CHARACTERS])
            client.set_terminated(target.run_id, record.status, record.end_time)


def _send_model(client: Any, target: TrackingTarget, model: Model) -> None:
    entities = import_mlflow("mlflow.entities")
    known = client.search_logged_models(
        [target.experiment_id], filter_string=f"tags.`ssl_ray.token` = '{model.token}'"
    )
    logged = (
        known[0]
        if known
        else client.create_logged_model(
            target.experiment_id,
            name=model.name,
            source_run_id=target.run_id,
            tags={"ssl_ray.token": model.token, "ssl_ray.step": str(model.step)},
        )
    )
    description = import_mlflow("mlflow.models").Model.load(model.path)
    description.model_id = description.model_uuid = logged.model_id
    description.artifact_path = logged.artifact_location
    description.run_id = target.run_id
    description.save(str(Path(model.path, "MLmodel")))
    client.log_model_artifacts(logged.model_id, model.path)
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(target.run_id, [entities.LoggedModelOutput(logged.model_id, model.step)])
    shutil.rmtree(model.path, ignore_errors=True)


def deliver(path: str | Path, target: TrackingTarget) -> int:
    """Sends what a run could not deliver, and removes the file. Returns the number of records sent.

    path: an `*-undelivered.jsonl` file, or the run's folder for all of them. Raises UserError when there is no such
    file or folder, or when MLflow does not take it; the file then stays.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"undelivered metrics: {path} does not exist; give the file or the run's folder")
    files = [path] if path.is_file() else [f for f in undelivered(path) if f.exists()]
    count = 0
    for file in files:
        records = read(file)
        try:
            send(connect(target.uri, must_exist=True), target, records)
        except Exception as error:
            why = why_not(target, error)
            raise UserError(f"MLflow at {redact(target.uri)} does not take {file}: {why}") from error
        file.unlink()
        count += len(records)
    return count


def why_not(target: TrackingTarget, error: Exception | None = None) -> str:
    """Why a store did not take what was sent to a run, and what to do, in words. error: what it said."""
    try:
        client = connect(target.uri, must_exist=True)
        deleted = way_back(client, target.uri, client.get_run(target.run_id))
    except StoreGone as gone:
        return str(gone)
    except Exception as another:
        return f"{reason(error or another)}; try again when it is up"
    return deleted or f"{reason(error) if error else 'it was too slow'}; try again when it is up"


def undelivered(folder: str | Path) -> list[Path]:
    """The files in a run's folder that may hold what MLflow has not got, in the order to send them."""
    return [Path(folder, name) for name in (METRICS_FILE, ARTIFACTS_FILE, ENDING_FILE)]
