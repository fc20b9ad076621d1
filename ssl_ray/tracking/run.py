"""The driver's side: one MLflow run for one training run, however often it is resumed."""

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ssl_ray.errors import UserError
from ssl_ray.redact import redact
from ssl_ray.tracking.client import THREAD_PREFIX, connect, import_mlflow, set_environment, within
from ssl_ray.tracking.client import reason as why
from ssl_ray.tracking.records import (
    ENDING_FILE,
    ERROR,
    TAG_CHARACTERS,
    Ending,
    append,
    deliver,
    send,
    undelivered,
)
from ssl_ray.tracking.store import require_artifacts, restore_experiment, way_back
from ssl_ray.tracking.target import TrackingSettings, TrackingTarget

logger = logging.getLogger("ssl_ray.tracking")

_KEY_CHARACTERS, _PARAM_CHARACTERS = 250, 6000  # MLflow's limits
_PARAMS_PER_BATCH = 100
_OPEN_SECONDS = 60.0
LESS_URGENT = 10


class StoreAway(UserError):
    """MLflow does not answer, or not as it should."""


def prepare(uri: str, *, must_exist: bool = False) -> threading.Thread:
    """Starts to import MLflow and to create a fresh store's tables (3 to 10 s) in a background thread.

    To be called while processes start or work that are more urgent. An error is left to `open_run`, which meets it
    again.
    """
    set_environment()  # here: to write to the environment in a thread is a danger to those who read it

    def connect_quietly() -> None:
        if sys.platform == "linux":  # where threads have priorities of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LESS_URGENT)
        try:
            connect(uri, must_exist=must_exist)
        except Exception as error:
            logger.debug("MLflow: %s", why(error))

    thread = threading.Thread(target=connect_quietly, name=f"{THREAD_PREFIX}prepare", daemon=True)
    thread.start()
    return thread


@dataclass(frozen=True)
class TrackedRun:
    """An open run in the driver's hands; as a context manager it ends the run FINISHED, FAILED or KILLED."""

    target: TrackingTarget

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self.target.run_id

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; raises what MLflow raises."""
        _log_tags(connect(self.target.uri, must_exist=True), self.run_id, tags)

    def log_dataset(self, name: str, digest: str, source: str, context: str = "training") -> None:
        """Records the data set as an input of the run: MLflow's UI lists it by name and digest (36 characters).

        Raises what MLflow raises.
        """
        entities = import_mlflow("mlflow.entities")
        dataset = entities.Dataset(
            name[:500], digest[:36], source_type="uri", source=json.dumps({"uri": redact(source)})
        )
        tag = entities.InputTag("mlflow.data.context", context)
        connect(self.target.uri, must_exist=True).log_inputs(
            self.run_id, [entities.DatasetInput(dataset, [tag])]
        )

    def finish(
        self,
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED",
        deadline: float = 10.0,
        *,
        reason: str = "",
    ) -> None:
        """Ends the run, after delivering what its workers left behind. reason: why it failed, for the tag `error`.

        With the store away for `deadline` seconds the ending is kept in the run's folder, and that is said.
        """
        ending = Ending(status, time.time_ns() // 1_000_000, reason)

        def end() -> None:
            deliver(self.target.folder, self.target)
            send(connect(self.target.uri, must_exist=True), self.target, [ending])

        Path(self.target.folder).mkdir(parents=True, exist_ok=True)
        try:
            within(deadline, end)
        except Exception as error:
            file = Path(self.target.folder, ENDING_FILE)
            try:
                append(file, [ending])
                kept = f"that is kept in {file}"
            except OSError as full:
                kept = f"nor can that be kept in {file} ({full.strerror})"
            logger.warning(
                "MLflow at %s was not told that the run %s (%s); %s",
                *(redact(self.target.uri), status, why(error), kept),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")


def open_run(
    settings: TrackingSettings,
    *,
    name: str,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> TrackedRun:
    """Creates a run, or opens `run_id` again: status RUNNING, and what it could not deliver before is delivered.

    params: nested; logged flat, with dots. A resumed run keeps the params it has, as MLflow does; a value that is now
    another goes to the tag `resumed.<param>`.

    Raises StoreAway when the store does not answer, StoreGone when it is no longer there, UserError when it knows no
    such run, or the run is deleted.
    """
    where = redact(settings.uri)
    try:
        return within(_OPEN_SECONDS, lambda: _open(settings, name, params or {}, tags or {}, run_id))
    except UserError:
        raise
    except TimeoutError as error:
        raise StoreAway(
            f"MLflow at {where} did not answer within {_OPEN_SECONDS:.0f} s; start it, or choose another store "
            "with MLFLOW_TRACKING_URI"
        ) from error
    except Exception as error:
        raise StoreAway(
            f"MLflow at {where} cannot be used ({why(error)}); start it, or choose another store with "
            "MLFLOW_TRACKING_URI"
        ) from error


def _open(
    settings: TrackingSettings,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    run_id: str | None,
) -> TrackedRun:
    client = connect(settings.uri, must_exist=settings.must_exist or run_id is not None)
    if run_id is None:
        experiment_id = _experiment(client, settings)
        run = client.create_run(experiment_id, run_name=name)
    else:
        run = _find(client, run_id, settings)
        require_artifacts(settings.uri, client.get_experiment(run.info.experiment_id).artifact_location)
        client.update_run(run_id, status="RUNNING")
        if ERROR in run.data.tags:
            client.delete_tag(run_id, ERROR)
    target = TrackingTarget(settings.uri, run.info.experiment_id, run.info.run_id, settings.folder)
    Path(target.folder, ENDING_FILE).unlink(missing_ok=True)  # it runs again
    if run_id is not None and any(file.exists() for file in undelivered(target.folder)):
        count = deliver(target.folder, target)
        logger.warning("MLflow at %s got %d records kept from before", redact(settings.uri), count)

    known = run.data.params
    flat = dict(_flatten(params))
    entities = import_mlflow("mlflow.entities")
    fresh = [entities.Param(key, value) for key, value in flat.items() if key not in known]
    for start in range(0, len(fresh), _PARAMS_PER_BATCH):
        client.log_batch(target.run_id, params=fresh[start : start + _PARAMS_PER_BATCH])
    changed = {f"resumed.{k}": v for k, v in flat.items() if k in known and known[k] != v}
    _log_tags(client, target.run_id, {**tags, **changed})
    return TrackedRun(target)


def _experiment(client: Any, settings: TrackingSettings) -> str:
    """The id of the experiment, created if there is none."""
    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        try:
            return str(client.create_experiment(settings.experiment, settings.artifact_location))
        except import_mlflow().MlflowException:
            experiment = client.get_experiment_by_name(settings.experiment)  # another run was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"MLFLOW_EXPERIMENT_NAME: {settings.experiment!r} was deleted; choose another name, or bring it back with "
            f"`{restore_experiment(settings.uri, experiment.experiment_id)}`"
        )
    require_artifacts(settings.uri, experiment.artifact_location)
    return str(experiment.experiment_id)


def _find(client: Any, run_id: str, settings: TrackingSettings) -> Any:
    """The run to resume."""
    try:
        run = client.get_run(run_id)
    except import_mlflow().MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(
            f"run id: MLflow at {redact(settings.uri)} has no run {run_id!r}; check MLFLOW_TRACKING_URI, or start a "
            "new run"
        ) from error
    if (deleted := way_back(client, settings.uri, run)) is not None:
        raise UserError(f"run {run.info.run_name!r} in MLflow at {redact(settings.uri)}: {deleted}")
    return run


def _log_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    entities = import_mlflow("mlflow.entities")
    entries = [
        entities.RunTag(key[:_KEY_CHARACTERS], str(value)[:TAG_CHARACTERS]) for key, value in tags.items()
    ]
    for start in range(0, len(entries), _PARAMS_PER_BATCH):
        client.log_batch(run_id, tags=entries[start : start + _PARAMS_PER_BATCH])


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every leaf; a list is one leaf unless it holds mappings."""
    if isinstance(value, Mapping) and (value or not prefix):
        for key, part in value.items():
            yield from _flatten(part, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        for position, part in enumerate(value):
            yield from _flatten(part, f"{prefix}.{position}")
    else:
        key, text = re.sub(r"[^\w\-. :/]", "_", prefix)[:_KEY_CHARACTERS], str(value)
        if len(text) > _PARAM_CHARACTERS:
            logger.warning("param %s: %d characters, MLflow keeps %d", key, len(text), _PARAM_CHARACTERS)
        yield key, text[:_PARAM_CHARACTERS]
