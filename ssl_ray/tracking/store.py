"""What may have become of a store, a run or an experiment since it was used: gone, or deleted; and the way back."""

import shlex
from pathlib import Path
from typing import Any

from ssl_ray.errors import UserError
from ssl_ray.redact import redact

_SQLITE = "sqlite:///"


class StoreGone(UserError):
    """The file of a SQLite store is not where it was; MLflow would make an empty one there."""


def database(uri: str) -> Path | None:
    """The file of a SQLite store, None of any other."""
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]) if uri.startswith(_SQLITE) else None


def require(uri: str) -> None:
    """Raises StoreGone where a store that was there has no file any more."""
    file = database(uri)
    if file is not None and not file.is_file():
        raise StoreGone(
            f"MLflow's store is gone: there is no file {str(file)!r}; if it moved, say where it is now, before the "
            f"command: MLFLOW_TRACKING_URI={_SQLITE}/NEW/FOLDER/{file.name} (it is remembered); else put it back"
        )


def way_back(client: Any, uri: str, run: Any) -> str | None:
    """What brings back a run that is deleted in MLflow, in words; None for one that is not deleted."""
    if run.info.lifecycle_stage != "deleted":
        return None
    experiment = client.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        return (
            f"its experiment {experiment.name!r} is deleted; bring it back with "
            f"`{restore_experiment(uri, experiment.experiment_id)}`"
        )
    return f"it is deleted; bring it back with `{_where(uri)}mlflow runs restore --run-id {run.info.run_id}`"


def restore_experiment(uri: str, experiment_id: str) -> str:
    """The command that undoes the deletion of an experiment."""
    return f"{_where(uri)}mlflow experiments restore --experiment-id {experiment_id}"


def _where(uri: str) -> str:
    """What MLflow's own command has to be told; nothing where that holds a password."""
    return f"MLFLOW_TRACKING_URI={shlex.quote(uri)} " if redact(uri) == uri else ""
