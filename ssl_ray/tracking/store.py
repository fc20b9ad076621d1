"""What may have become of a store, a run or an experiment since it was used: gone, or deleted; and the way back."""

import contextlib
import shlex
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ssl_ray.errors import UserError
from ssl_ray.redact import redact

_SQLITE = "sqlite:///"
# Where its tables hold whole paths of artifacts.
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)


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
            f"command: MLFLOW_TRACKING_URI={_SQLITE}/NEW/FOLDER/{file.name} (--resume remembers it); else put it back"
        )


def local_folder(location: str) -> Path | None:
    """The folder that a location of artifacts names on this machine; None of one in an object store, or relative."""
    parts = urlsplit(location)
    folder = Path(unquote(parts.path) if parts.scheme else location)
    return folder if parts.scheme in ("", "file") and folder.is_absolute() else None


def require_artifacts(uri: str, location: str) -> None:
    """Raises StoreGone where a store keeps an experiment's artifacts in a folder of a place that is no longer there.

    A store remembers whole paths: one that moved still names the old place, and MLflow would make that anew.
    location: the experiment's, as MLflow has it. Of a new one the folder and the one above it are yet to be made. A
    server's are on its own machine, whatever they are called.
    """
    folder = local_folder(location)
    if database(uri) is None or folder is None:
        return
    place = folder.parent.parent
    if not any(path.is_dir() for path in (folder, folder.parent, place)):
        raise StoreGone(
            f"MLflow's store keeps its artifacts below {str(place)!r}, which is gone; if that moved, say so once: "
            f"{_where(uri)}ssl-ray runs moved {shlex.quote(str(place))} NEW_PLACE"
        )


def move_artifacts(uri: str, old: str, new: str) -> int:
    """Tells a SQLite store that what lay below the folder `old` lies below `new` now. Returns how many entries changed.

    MLflow has no call for it. Raises UserError for a store of another kind, and where nothing lay there.
    """
    require(uri)
    file = database(uri)
    if file is None:
        raise UserError(f"moved: {redact(uri)} is a server, which knows itself where its artifacts are")
    if not Path(old).is_absolute():
        raise UserError(f"moved: {old!r} is no absolute path, as the store has them; give the whole of it")
    if not Path(new).is_dir():
        raise UserError(f"moved: there is no folder {new!r}; give the place where it is now")
    changed = 0
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        for table, column in _LOCATIONS:
            for before, after in ((Path(old).as_uri(), Path(new).as_uri()), (old, new)):
                changed += connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR "
                    f"substr({column}, 1, ?) = ?",
                    (after, len(before) + 1, before, len(before) + 1, f"{before}/"),
                ).rowcount
    if not changed:
        raise UserError(
            f"moved: MLflow's store at {uri} keeps nothing below {old!r}; `ssl-ray runs show` names folders"
        )
    return changed


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
