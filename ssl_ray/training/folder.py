"""A run's folder: `<storage>/<name>/`, on disk or in an object store, with what it takes to continue the run."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from ssl_ray.errors import UserError
from ssl_ray.recipe import Recipe

RUN, RECIPE = "run.json", "recipe.json"
CHECKPOINTS = "checkpoint_manager_snapshot.json"  # Ray Train's list of a run's checkpoints


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
        return cls(storage if "://" in storage else os.path.abspath(storage), name)

    @classmethod
    def find(cls, run: str, storage: str) -> "RunFolder":
        """The folder that a user means by `run`: a path, a URI, or a name in `storage`. Raises UserError if none is."""
        for parent, name in ((storage, run), os.path.split(run.rstrip("/"))):
            if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                folder = cls.at(parent or ".", name)
                if folder.exists():
                    return folder
        raise UserError(
            f"resume: no run {run!r} (looked for {RUN} in {run!r} and below {storage!r}); give the run's folder "
            "or its name"
        )

    @property
    def uri(self) -> str:
        """Path or URI of the folder itself."""
        return f"{self.storage.rstrip('/')}/{self.name}"

    @property
    def local(self) -> Path | None:
        """The folder as a path, None when it lies in an object store."""
        return None if "://" in self.uri else Path(self.uri)

    def exists(self) -> bool:
        """Whether a run has begun here."""
        filesystem, path = self._filesystem()
        return filesystem.get_file_info(f"{path}/{RUN}").type == fs.FileType.File  # type: ignore[no-any-return]

    def begin(self, recipe: Recipe, record: dict[str, Any]) -> None:
        """Writes the recipe and the run's record; the record last, for it says that the run exists."""
        filesystem, path = self._filesystem()
        filesystem.create_dir(path, recursive=True)
        self._write(RECIPE, recipe.to_json())
        self._write(RUN, record)

    def record(self) -> dict[str, Any]:
        """What `begin` wrote: MLflow run id, data set, versions."""
        return self._read(RUN)

    def recipe(self) -> Recipe:
        """The resolved recipe of the run."""
        return Recipe.from_json(self._read(RECIPE))

    def latest_checkpoint(self) -> str | None:
        """Path or URI of the newest registered checkpoint."""
        filesystem, path = self._filesystem()
        if filesystem.get_file_info(f"{path}/{CHECKPOINTS}").type != fs.FileType.File:
            return None
        results = self._read(CHECKPOINTS).get("checkpoint_results", [])
        names = [result["checkpoint_dir_name"] for result in results]
        return f"{self.uri}/{names[-1]}" if names else None

    def _filesystem(self) -> tuple[Any, str]:
        try:
            if "://" in self.uri:
                filesystem, path = fs.FileSystem.from_uri(self.uri)
                return filesystem, path
            return fs.LocalFileSystem(), self.uri
        except (ValueError, OSError) as error:
            raise UserError(f"storage: {self.storage!r} cannot be opened: {error}") from error

    def _write(self, file: str, value: dict[str, Any]) -> None:
        filesystem, path = self._filesystem()
        with filesystem.open_output_stream(f"{path}/{file}") as stream:
            stream.write(json.dumps(value, indent=2).encode())

    def _read(self, file: str) -> dict[str, Any]:
        filesystem, path = self._filesystem()
        try:
            with filesystem.open_input_stream(f"{path}/{file}") as stream:
                content: dict[str, Any] = json.loads(stream.read())
        except (OSError, ValueError) as error:
            raise UserError(f"run: {self.uri}/{file} cannot be read: {error}") from error
        return content
