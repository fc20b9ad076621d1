"""What a report is about: a run in MLflow, its folder and recipe as far as they are still there, and its curves."""

import json
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ssl_ray.checks import REQUIRED
from ssl_ray.data.source import Dataset, open_dataset
from ssl_ray.errors import UserError
from ssl_ray.paths import format_value, walk
from ssl_ray.recipe import Recipe
from ssl_ray.tracking import FOLDER, History, PastRun, Point, open_history, redact, tracking_settings
from ssl_ray.training.folder import RunFolder
from ssl_ray.training.places import recorded, require
from ssl_ray.training.tracked import tracking_of

PREVIEW = "preview.png"
_RECIPE_FILE = "recipe.json"


@dataclass(frozen=True)
class Subject:
    """A run to report on.

    folder, recipe: None where they are gone or cannot be read. record: what the folder says of the run, else empty.
    values: the recipe as (dotted path -> text). notes: what is missing, a sentence each.
    """

    run: PastRun
    history: History
    folder: RunFolder | None
    record: Mapping[str, Any]
    recipe: Recipe | None
    values: Mapping[str, str]
    notes: list[str] = field(default_factory=list)

    def curves(self) -> dict[str, list[Point]]:
        """Every metric of the run over its steps."""
        return {name: self.history.metric(self.run.run_id, name) for name in sorted(self.run.metrics)}

    def dataset(self) -> Dataset | None:
        """The images of the run; None with a note when they are gone, or are others now."""
        if not self.record:
            self.notes.append("Without its folder it is not known which images the run was trained on.")
            return None
        data = recorded(self.record)
        again = f"ssl-ray pretrain --resume {shlex.quote(self.folder.uri if self.folder else self.run.name)}"
        try:
            require(self.run.name, data, None, again)
            found = open_dataset(data, holdout=self.record["holdout"], **self.record["columns"])
        except (UserError, OSError) as error:
            self.notes.append(f"The data is gone: {redact(str(error))}")
            return None
        if found.train.info.digest != self.record["dataset_digest"]:
            self.notes.append(
                f"The data is not what it was: {data} has the digest {found.train.info.digest} now, "
                f"{self.record['dataset_digest']} when the run began."
            )
            return None
        return found

    def checkpoint(self) -> str | None:
        """The newest checkpoint; None with a note when there is none."""
        newest = self.folder.latest_checkpoint() if self.folder is not None else None
        if newest is None and self.folder is not None:
            self.notes.append("The run has no checkpoint yet: no features, neighbours or map.")
        return newest


def find(run: str, storage: str) -> Subject:
    """The run that a user means: its folder, or its name (or the beginning of it) or id in MLflow.

    Raises UserError if there is no such run.
    """
    try:
        folder: RunFolder | None = RunFolder.find(run, storage)
    except UserError:
        folder = None
    if folder is not None:
        record = folder.record()
        history = open_history(tracking_of(folder, record))
        return _subject(history.get(record["mlflow_run_id"]), history, folder, record)
    history = open_history(tracking_settings("."))
    past = history.find(run)
    folder, notes = _folder(past, storage), []
    if folder is None:
        where = past.tags.get(FOLDER, f"{storage}/{past.name}")
        notes = [f"The run's folder, {redact(where)}, is not there: this page has what MLflow knows."]
    return _subject(past, history, folder, folder.record() if folder else {}, notes)


def _folder(run: PastRun, storage: str) -> RunFolder | None:
    for place in (run.tags.get(FOLDER), run.name):
        try:
            folder = RunFolder.find(place, storage) if place else None
        except UserError:
            continue
        if folder is not None and folder.record().get("mlflow_run_id") == run.run_id:
            return folder
    return None


def _subject(
    run: PastRun,
    history: History,
    folder: RunFolder | None,
    record: Mapping[str, Any],
    notes: list[str] | None = None,
) -> Subject:
    notes = notes or []
    # The recipe may name the user's own modules.
    sys.path += [path for path in record.get("python_path", []) if path not in sys.path]
    recipe = None
    try:
        recipe = folder.recipe() if folder is not None else _logged_recipe(run, history)
    except UserError as error:
        notes.append(f"The recipe cannot be built any more: {error}")
    values = dict(run.params) if recipe is None else _values(recipe)
    return Subject(run, history, folder, record, recipe, values, notes)


def _logged_recipe(run: PastRun, history: History) -> Recipe | None:
    """The recipe as MLflow keeps it, None if it has none."""
    with tempfile.TemporaryDirectory() as directory:
        file = history.artifact(run.run_id, _RECIPE_FILE, directory)
        return None if file is None else Recipe.from_json(json.loads(file.read_text()))


def _values(recipe: Recipe) -> dict[str, str]:
    """All that `--set` can change, defaults included, as it would be typed."""
    return {
        path: format_value(value)
        for path, value in walk(recipe)
        if value is not REQUIRED and path != "optimization.optimizer.lr"
    }
