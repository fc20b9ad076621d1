"""The reading side: the runs that a store has, their numbers over time, and files put beside them afterwards."""

import shutil
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ssl_ray.errors import UserError, nearest
from ssl_ray.redact import redact
from ssl_ray.tracking.client import connect, import_mlflow, reason
from ssl_ray.tracking.past import PastRun, address, last_values, number, seconds
from ssl_ray.tracking.sqlite import (
    Experiment,
    artifacts_of,
    experiments,
    read,
    run_called,
    runs_of,
    values_of,
)
from ssl_ray.tracking.store import (
    StoreGone,
    database,
    local_folder,
    require,
    require_artifacts,
    restore_experiment,
)
from ssl_ray.tracking.target import TrackingSettings

_PAGE = 1000  # runs of one answer
_ID_CHARACTERS = 4  # of a run's id, before it may stand for the run


class Point(NamedTuple):
    """A metric's value at a step; time in seconds since the epoch."""

    step: int
    value: float
    time: float


class History:
    """The runs of one experiment. Made by `open_history`."""

    def __init__(self, settings: TrackingSettings, experiment_id: str) -> None:
        self.settings = settings
        self._experiment_id = experiment_id

    @cached_property
    def _client(self) -> Any:
        return connect(self.settings.uri, must_exist=True)

    def runs(self) -> list[PastRun]:
        """All runs that are not deleted, the newest first."""
        if (read_here := read(self.settings.uri, runs_of(self._experiment_id))) is not None:
            return read_here
        found: list[PastRun] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                max_results=_PAGE,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            found += map(past_run, page)
            token = page.token
            if not token:
                return found

    def find(self, run: str) -> PastRun:
        """The run that a user means by `run`; see `find_run`. An id of another experiment's run is known, too."""
        if len(run) == 32 and not set(run) - set("0123456789abcdef"):
            try:
                return self.get(run)
            except UserError:
                pass
        return find_run(run, self.runs())

    def get(self, run_id: str) -> PastRun:
        """The run of this id, in whatever experiment. Raises UserError if there is none."""
        if (read_here := read(self.settings.uri, run_called(run_id))) is not None:
            return read_here
        try:
            found = self._client.get_run(run_id)
        except import_mlflow().MlflowException as error:
            raise UserError(f"run: MLflow at {redact(self.settings.uri)} has no run {run_id}") from error
        return past_run(found)

    def metric(self, run_id: str, name: str) -> list[Point]:
        """All values of a metric, one for each step, in order of steps.

        A resumed run logged some steps twice: the later value counts. NaN and infinities stay.
        """
        logged = read(self.settings.uri, values_of(run_id, name))
        if logged is None:
            entities = self._client.get_metric_history(run_id, name)
            logged = [(metric.step, metric.value, metric.timestamp) for metric in entities]
        at: dict[int, Point] = {}
        for step, value, milliseconds in logged:
            point = Point(step, number(value), milliseconds / 1000)
            if step not in at or at[step].time <= point.time:
                at[step] = point
        return [at[step] for step in sorted(at)]

    def attach(self, run_id: str, file: Path, artifact_path: str = "") -> None:
        """Puts a file among the artifacts of a run, replacing one of its name. Raises UserError if it cannot be."""
        try:
            # Of a local store MLflow would do no more than this, and import for two seconds first.
            places = read(self.settings.uri, artifacts_of(run_id))
            mine, of_all = places or ("", "")
            if (folder := local_folder(mine)) is not None:
                require_artifacts(self.settings.uri, of_all)
                (folder / artifact_path).mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, folder / artifact_path / file.name)
                return
            experiment = self._client.get_experiment(self._client.get_run(run_id).info.experiment_id)
            require_artifacts(self.settings.uri, experiment.artifact_location)
            self._client.log_artifact(run_id, str(file), artifact_path or None)
        except StoreGone:
            raise
        except Exception as error:
            raise UserError(
                f"MLflow at {redact(self.settings.uri)} does not take {file.name} ({reason(error)})"
            ) from error

    def artifact(self, run_id: str, name: str, into: str | Path) -> Path | None:
        """A local copy of an artifact in the folder `into`; None if the run has none of this name."""
        try:
            return Path(self._client.download_artifacts(run_id, name, str(into)))
        except Exception:  # each artifact store has its own errors for what is not there
            return None


def open_history(settings: TrackingSettings) -> History:
    """The history of the settings' experiment. Creates nothing.

    Raises UserError when there is no store or experiment yet, naming what would make it, or when it does not answer.
    """
    where = redact(settings.uri)
    no_runs = (
        "no runs yet: {}; `ssl-ray pretrain moco` makes the first, MLFLOW_TRACKING_URI names another store"
    )
    if settings.must_exist:
        require(settings.uri)
    if (file := database(settings.uri)) is not None and not file.is_file():
        raise UserError(no_runs.format(f"{file} does not exist"))
    try:
        experiment, others = _experiment(settings)
    except Exception as error:
        raise UserError(
            f"MLflow at {where} cannot be read ({reason(error)}); start it, or name another store with "
            "MLFLOW_TRACKING_URI"
        ) from error
    if experiment is None:
        others = [name for name in others if name != "Default"]
        if others:
            raise UserError(
                f"experiment: MLflow at {where} has none called {settings.experiment!r}; "
                f"{nearest(settings.experiment, others)}"
            )
        raise UserError(no_runs.format(f"MLflow at {where} has no experiment {settings.experiment!r}"))
    if experiment.stage == "deleted":
        raise UserError(
            f"experiment: {settings.experiment!r} is deleted in MLflow at {where}; bring it back with "
            f"`{restore_experiment(settings.uri, experiment.experiment_id)}`, or name another with "
            "MLFLOW_EXPERIMENT_NAME"
        )
    return History(settings, experiment.experiment_id)


def _experiment(settings: TrackingSettings) -> tuple[Experiment | None, list[str]]:
    """The settings' experiment, and where there is none the names of all. Raises what MLflow raises."""
    known = read(settings.uri, experiments)
    if known is not None:
        found = [e for e in known if e.name == settings.experiment]
        if len(found) < 2:  # else of several workspaces, among which MLflow chooses
            return next(iter(found), None), [e.name for e in known if e.stage == "active"]
    client = connect(settings.uri, must_exist=True)
    entity = client.get_experiment_by_name(settings.experiment)
    if entity is None:
        return None, [e.name for e in client.search_experiments()]
    return Experiment(entity.experiment_id, entity.name, entity.lifecycle_stage), []


def find_run(run: str, runs: Sequence[PastRun]) -> PastRun:
    """The one of `runs` that a user means: by its name, its MLflow id, or the beginning of either that is its alone.

    Of several with the whole name the newest is meant. Raises UserError with the nearest name, or all that begin so.
    """
    if exact := [r for r in runs if run in (r.name, r.run_id)]:
        return max(exact, key=lambda r: r.start or 0)
    begun = [
        r for r in runs if r.name.startswith(run) or (len(run) >= _ID_CHARACTERS and r.run_id.startswith(run))
    ]
    if len(begun) == 1:
        return begun[0]
    if begun and run:
        names = ", ".join(f"{r.name} ({r.run_id[:8]})" for r in begun[:5])
        raise UserError(f"run: {run!r} may be {names}{', ...' if len(begun) > 5 else ''}; give more of it")
    raise UserError(f"run: there is no {run!r}; {_nearest(run, [r.name for r in runs])}")


def _nearest(name: str, names: Iterable[str]) -> str:
    """`nearest`, for so many names that a list of all would help nobody."""
    said = nearest(name, names)
    return said if len(said) < 200 else "`ssl-ray runs` lists them"


def past_run(run: Any) -> PastRun:
    """A run of MLflow's in our form."""
    info, data = run.info, run.data
    trained_on = next(iter(run.inputs.dataset_inputs if run.inputs else []), None)
    dataset = trained_on.dataset if trained_on else None
    return PastRun(
        run_id=info.run_id,
        name=info.run_name or info.run_id,
        status=str(info.status).lower(),
        start=seconds(info.start_time),
        end=seconds(info.end_time),
        params=dict(data.params),
        tags=dict(data.tags),
        metrics=last_values(data.metrics),
        data=dataset.name if dataset else "",
        digest=dataset.digest if dataset else "",
        source=address(dataset.source) if dataset else "",
        experiment_id=str(info.experiment_id),
    )
