"""A run's folder: `<storage>/<name>/`, on disk or in an object store, with what it takes to continue the run."""

import json
import os
import re
import secrets
import shlex
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from ssl_ray.errors import StoreError, UserError
from ssl_ray.filesystems import open_uri
from ssl_ray.job import lasting_folder
from ssl_ray.recipe import Recipe
from ssl_ray.tracking import redact
from ssl_ray.training.stops import held

RUN, RECIPE = "run.json", "recipe.json"
EVALUATIONS = "evaluations.json"
ERROR = "error.txt"  # why the run ended early, the last time it did
MARKER = ".validate_storage_marker"  # by which Ray Train tells whether all nodes see the folder
CHECKPOINTS = "checkpoint_manager_snapshot.json"  # Ray Train's list of a run's checkpoints


def new_name(*parts: str) -> str:
    """A name for a run to be: what it is, when it began, and four digits by chance, for two may begin in one second."""
    return "-".join([*parts, time.strftime("%Y%m%d-%H%M%S"), secrets.token_hex(2)])


class NoRun(UserError):
    """There is no such run: neither forbidden nor unreachable."""


@dataclass(frozen=True)
class RunFolder:
    """storage: absolute path or URI that every node can reach; name: the run's, unique in it."""

    storage: str
    name: str

    @classmethod
    def at(cls, storage: str, name: str) -> "RunFolder":
        """The folder of run `name`; a relative storage path is made absolute. Raises UserError for an odd name."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"name: {name!r} is not a run's name; use letters, digits, '.', '_' and '-'")
        return cls(storage if "://" in storage else os.path.normpath(lasting_folder() / storage), name)

    @classmethod
    def find(cls, run: str, storage: str, holds: str = RUN) -> "RunFolder":
        """The folder that a user means by `run`: a path, a URI, or a name in `storage`. Raises NoRun if none is.

        holds: the file that tells it from others.
        """
        path, mark, query = run.partition("?")
        above, last = os.path.split(path.rstrip("/"))
        for parent, name in ((storage, run), (f"{above}{mark}{query}", last)):
            if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                folder = cls.at(parent or ".", name)
                if folder.holds(holds):
                    return folder
        what = "run" if holds == RUN else holds.partition(".")[0]
        raise NoRun(
            f"resume: no {what} {run!r} (looked for {holds} in {run!r} and below {storage!r}); give its folder or "
            "its name"
        )

    @property
    def uri(self) -> str:
        """Path or URI of the folder itself."""
        return _below(self.storage, self.name)

    @property
    def local(self) -> Path | None:
        """The folder as a path, None when it lies in an object store."""
        return None if "://" in self.uri else Path(self.uri)

    @property
    def error_file(self) -> str:
        """Path or URI of what `keep_error` writes."""
        return _below(self.uri, ERROR)

    @property
    def command(self) -> str:
        """What continues the run, to be typed."""
        record: dict[str, Any] = {}
        with suppress(UserError):
            record = self.record()
        verb, folder = ("tune", self.storage) if "search" in record else ("pretrain", self.uri)
        return str(record.get("command", f"ssl-ray {verb} --resume {shlex.quote(folder)}"))

    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self.holds(RUN)

    def holds(self, file: str) -> bool:
        """Whether there is a file of that name."""
        with self._opened() as (filesystem, path):
            found: bool = filesystem.get_file_info(f"{path}/{file}").type == fs.FileType.File
        return found

    def below(self, name: str) -> "RunFolder":
        """A folder in this one."""
        return RunFolder.at(self.uri, name)

    def begin(self, recipe: Recipe, record: dict[str, Any]) -> None:
        """Writes the recipe and the run's record; the record last, for it says that the run exists."""
        self.create()
        self.write(RECIPE, recipe.to_json())
        self.write(RUN, record)

    def create(self) -> None:
        """Makes the folder itself, and those above it."""
        with self._opened() as (filesystem, path):
            filesystem.create_dir(path, recursive=True)

    @contextmanager
    def undone_unless_begun(self) -> Iterator[None]:
        """Around what begins a run. Ray Train makes the folder when it starts: it goes again if no run came of it."""
        made = [path for path in self.local.parents if not path.exists()] if self.local else []
        try:
            yield
        except BaseException:
            with held(), suppress(UserError):
                if not self.exists():
                    self._discard()
                    for path in made:
                        with suppress(OSError):
                            path.rmdir()
            raise

    def _discard(self) -> None:
        """Takes away what Ray Train leaves where it starts, and the folder if there is nothing else in it."""
        with self._opened() as (filesystem, path):
            if self.holds(MARKER):
                filesystem.delete_file(f"{path}/{MARKER}")
            here = filesystem.get_file_info(path).type == fs.FileType.Directory
            if here and not filesystem.get_file_info(fs.FileSelector(path)):
                filesystem.delete_dir(path)

    def finish(self, summary: dict[str, Any]) -> None:
        """Adds the run's summary to its record: there is nothing left to do."""
        self.update(summary=summary)

    def update(self, **values: Any) -> None:
        """Adds to the run's record."""
        self.write(RUN, self.record() | values)

    def record(self) -> dict[str, Any]:
        """What `begin` wrote: MLflow run id, data set, versions; and `summary` once the run is finished.

        python_path, from which the run's modules are imported, is left out as far as it is relative or in this folder:
        one that a stranger handed over must not bring the code with it.
        """
        record = self.read(RUN)
        if "python_path" in record:
            record["python_path"] = [path for path in record["python_path"] if self._is_foreign(path)]
        return record

    def _is_foreign(self, path: str) -> bool:
        """Whether it is absolute, and not in this folder."""
        mine = os.path.realpath(self.local) if self.local else None
        return os.path.isabs(path) and mine not in (
            os.path.realpath(path),
            *map(str, Path(os.path.realpath(path)).parents),
        )

    def recipe(self) -> Recipe:
        """The resolved recipe of the run. Raises UserError for one that cannot be made any more."""
        try:
            return Recipe.from_json(self.read(RECIPE))
        except UserError as error:
            gone = [path for path in self.record().get("python_path", []) if not os.path.isdir(path)]
            if not gone:
                raise
            raise UserError(
                f"{error}; the run's modules were in {gone[0]!r}, which is gone: if it moved, put PYTHONPATH=FOLDER "
                "before the command"
            ) from error

    def evaluations(self) -> list[dict[str, Any]]:
        """What was judged after training, oldest first; see `keep_evaluation`."""
        if not self.holds(EVALUATIONS):
            return []
        found: list[dict[str, Any]] = self.read(EVALUATIONS)["evaluations"]
        return found

    def keep_evaluation(self, evaluation: dict[str, Any]) -> str:
        """Adds to the run's evaluations, or replaces the one of the same `id`. Returns their file."""
        others = [kept for kept in self.evaluations() if kept.get("id") != evaluation["id"]]
        self.create()
        self.write(EVALUATIONS, {"evaluations": [*others, evaluation]})
        return _below(self.uri, EVALUATIONS)

    def keep(self, file: str, content: bytes) -> str:
        """Writes a file of the run's own; returns its path or URI."""
        with self._opened() as (filesystem, path):
            filesystem.create_dir(path, recursive=True)
            with filesystem.open_output_stream(f"{path}/{file}") as stream:
                stream.write(content)
        return _below(self.uri, file)

    def keep_error(self, error: BaseException) -> None:
        """Writes why the run ended: the reason in a line, and below it all that is known. Of no use where it cannot."""
        causes = [str(error)]
        while (cause := error.__cause__) is not None:
            error = cause
            # What comes from a worker holds its traceback in its text; of our own it is to be made.
            text = str(cause)
            causes.append(text if "Traceback" in text else "".join(traceback.format_exception(cause)))
        with suppress(UserError):
            self.keep(ERROR, "\n\n".join(causes).encode(errors="replace"))

    def latest_checkpoint(self, from_step: int = 0) -> str | None:
        """Path or URI of the newest registered checkpoint, None if there is none of at least `from_step` steps."""
        if not self.holds(CHECKPOINTS):
            return None
        results = self.read(CHECKPOINTS).get("checkpoint_results", [])
        if not results or results[-1].get("metrics", {}).get("step", 0) < from_step:
            return None
        return _below(self.uri, results[-1]["checkpoint_dir_name"])

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        """The file system and the folder's path in it; what fails in the body is the user's to mend."""
        try:
            yield open_uri(self.uri)
        except (UserError, StoreError) as error:
            raise UserError(f"storage: {error}") from error
        except (ValueError, OSError) as error:
            raise UserError(
                f"storage: {self.name!r} in {redact(self.storage)!r} cannot be read or written: {error}; check that it "
                "exists and that you may, or choose another --storage"
            ) from error

    def write(self, file: str, value: dict[str, Any]) -> None:
        """Writes JSON; a kill in the middle leaves what was there. An object store shows an object when it is whole."""
        name = f"{file}.tmp" if self.local else file
        with self._opened() as (filesystem, path):
            with filesystem.open_output_stream(f"{path}/{name}") as stream:
                stream.write(json.dumps(value, indent=2).encode())
            if name != file:
                filesystem.move(f"{path}/{name}", f"{path}/{file}")

    def read(self, file: str) -> dict[str, Any]:
        """Reads JSON."""
        with self._opened() as (filesystem, path), filesystem.open_input_stream(f"{path}/{file}") as stream:
            content: dict[str, Any] = json.loads(stream.read())
        return content


def _below(parent: str, name: str) -> str:
    """Path or URI of `name` in a folder; the query of a URI (an endpoint, a region) stays at its end."""
    path, mark, query = parent.partition("?") if "://" in parent else (parent, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"
