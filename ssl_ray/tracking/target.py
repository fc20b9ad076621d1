"""Where a run is tracked: the store, the experiment, the run, as absolute addresses that survive a change of cwd."""

import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from ssl_ray.errors import UserError
from ssl_ray.job import lasting_folder
from ssl_ray.redact import redact

DEFAULT_EXPERIMENT = "ssl-ray"


@dataclass(frozen=True)
class TrackingSettings:
    """The MLflow store and experiment to log to, and the run's own folder. Made by `tracking_settings`.

    uri: absolute; may hold a password, so it is left out of the repr. artifact_location: where a new experiment keeps
    its artifacts, None where the server decides. folder: absolute; keeps what could not be delivered. must_exist: the
    store was used before, and none is to be made in its place.
    """

    uri: str = field(repr=False)
    experiment: str
    artifact_location: str | None
    folder: str
    must_exist: bool = False


@dataclass(frozen=True)
class TrackingTarget:
    """One run in a store: small and picklable, what the driver hands to its workers."""

    uri: str = field(repr=False)
    experiment_id: str
    run_id: str
    folder: str


def tracking_settings(
    folder: str | Path, *, uri: str | None = None, experiment: str | None = None, must_exist: bool = False
) -> TrackingSettings:
    """Settings from the arguments, else MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, else the defaults.

    The default store is `<cwd>/mlflow.db` with artifacts in `<cwd>/mlruns` (in a job `<home>/...`: see
    `lasting_folder`), and the experiment `ssl-ray`. A relative SQLite path is made absolute here, in the driver:
    workers run in other directories.

    Raises UserError for a store that MLflow does not write to.
    """
    cwd = lasting_folder()
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{cwd / 'mlflow.db'}"
    experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    scheme = uri.partition("://")[0] if "://" in uri else ""
    artifacts: Path | None = cwd
    if scheme == "sqlite":
        file, mark, query = uri.removeprefix("sqlite:///").partition("?")
        if file in {uri, "", ":memory:"}:
            raise UserError(
                f"MLFLOW_TRACKING_URI: {uri!r} is not a file that several processes can open; "
                "use sqlite:////absolute/path/mlflow.db"
            )
        uri = f"sqlite:///{(cwd / file).resolve()}{mark}{query}"
        artifacts = (cwd / file).resolve().parent
    elif scheme in {"http", "https"} or uri.startswith("databricks"):
        artifacts = None
    elif scheme in {"", "file"}:
        raise UserError(
            f"MLFLOW_TRACKING_URI: {uri!r} is a file store, which MLflow no longer writes to; "
            "use sqlite:////absolute/path/mlflow.db, or the http address of an MLflow server"
        )
    location = (artifacts / "mlruns" / re.sub(r"[^\w.-]", "_", experiment)).as_uri() if artifacts else None
    kept = os.path.normpath(lasting_folder() / folder)
    return TrackingSettings(uri, experiment, location, kept, must_exist)


def ui_command(target: TrackingTarget) -> str:
    """What opens the run in MLflow's UI: a command for a local store, an address for a server."""
    uri = redact(target.uri)
    if uri.startswith(("http://", "https://")):
        return f"{uri.rstrip('/')}/#/experiments/{target.experiment_id}/runs/{target.run_id}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
