"""From what a user asked for to a finished, tracked, judged run."""

import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ssl_ray import __version__
from ssl_ray.console import Console, percent
from ssl_ray.data.source import Dataset, open_dataset
from ssl_ray.errors import Interrupted, StoreError, UserError, first_line
from ssl_ray.experiments import Chosen, load_recipe
from ssl_ray.recipe import Recipe, overrides, parse_settings
from ssl_ray.resolve import resolve
from ssl_ray.rules import located
from ssl_ray.tracking import (
    AnyTracker,
    StoreGone,
    TrackedRun,
    TrackingSettings,
    deliver,
    make_tracker,
    prepare,
    redact,
    require,
    ui_command,
)
from ssl_ray.training import artifacts
from ssl_ray.training.control import Control
from ssl_ray.training.folder import RunFolder, new_name
from ssl_ray.training.local_cluster import own_modules
from ssl_ray.training.notices import Notices
from ssl_ray.training.places import check_data, lasting, reopen
from ssl_ray.training.preflight import preflight
from ssl_ray.training.stops import held
from ssl_ray.training.tracked import open_tracked, tag_alarms, target_of, tracking_of, unless_away
from ssl_ray.workers import Workers

if TYPE_CHECKING:
    from ssl_ray.training.cluster import Resources


DEFAULT_DATA = "fashion"
_MLFLOW_STATUS: dict[str, Literal["FINISHED", "FAILED", "KILLED"]] = {
    "finished": "FINISHED",
    "collapsed": "FAILED",
}


@dataclass(frozen=True)
class Request:
    """What the user asked for. Fields are the options of `ssl-ray pretrain`; a list of "path=value" in `settings`.

    data: `fashion` unless given; with `resume` where the run's images are now, by default where they were.
    """

    recipe: str | None = None
    data: str | None = None
    workers: Workers | None = None
    settings: Sequence[str] = ()
    scale: str = "auto"
    name: str | None = None
    storage: str = "runs"
    resume: str | None = None
    columns: dict[str, str | None] = field(default_factory=dict)
    holdout: float = 0.1
    address: str | None = None
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None
    as_json: bool = False
    verbose: bool = False


def pretrain(request: Request, console: Console) -> dict[str, Any]:
    """Runs a request to its end and says how it went. Returns what `--json` prints.

    Raises Interrupted where Ctrl-C ended it before or after the training, which itself ends with a checkpoint then, and
    UserError for whatever the user can mend, before any worker starts where that can be known.
    """
    with Notices(console.warn):
        return _pretrain(request, console)


def _pretrain(request: Request, console: Console) -> dict[str, Any]:
    started = time.monotonic()
    try:
        what = _continued(request) if request.resume else _fresh(request, console)
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted before anything began; the same command starts it") from error
    summary, mlflow_ui = carry_out(*what, request, console, started=started)
    _say(request, console, summary, mlflow_ui)
    return summary


def carry_out(
    folder: RunFolder,
    recipe: Recipe,
    dataset: Dataset,
    record: dict[str, Any],
    request: Request,
    console: Console,
    *,
    started: float,
    tags: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], str]:
    """Trains a resolved recipe in its folder, from the last checkpoint if there is one; does nothing where it is done.

    record: what the run's folder says of it, completed here. request: only its workers and cluster count.
    started: when the command began. tags: further ones in MLflow. Returns the summary, and what opens MLflow's UI.
    Raises UserError.
    """
    workers = request.workers or Workers.parse(str(record.get("workers", 1)))
    sizes = workers.sizes(recipe)
    settings = tracking_of(folder, record)
    if "summary" in record and alike(recipe, folder.recipe()):
        return _nothing_to_do(console, settings, folder, record)
    if settings.must_exist:
        require(settings.uri)
    from ssl_ray.training import cluster, head, reach
    from ssl_ray.training.elastic import fit_group
    from ssl_ray.training.mend import mend

    try:
        mend(folder, console.warn)
        # One after the other, though each takes seconds: Ray's start writes environment variables, torch reads them,
        # and glibc before 2.41 crashes where two threads do so at once.
        preflight(recipe, sizes, from_checkpoint=folder.latest_checkpoint() is not None)
        with cluster.joined(request.address, verbose=request.verbose, python_path=record["python_path"]):
            resources = fit_group(sizes, request.cpus_per_worker, request.gpus_per_worker, console.print)
            if len(sizes) > 1:
                console.print(
                    f"workers: {_alternatives(sizes)}, as the cluster has room for; a resize loses no step"
                )
            reach.require(
                console.warn,
                images=(dataset.train, dataset.val),
                storage=folder.storage,
                tracking=settings.uri,
            )
            kept = f"all up to the last checkpoint is kept in {folder.uri}"
            with telling(folder, console), head.watched(f"{kept}: continue with `{folder.command}`"):
                summary = train_in(
                    folder,
                    recipe,
                    dataset,
                    record,
                    workers=workers,
                    resources=resources,
                    settings=settings,
                    console=console,
                    verbose=request.verbose,
                    tags=tags,
                    alone=True,
                    started=started,
                    on_first_step=lambda: console.detail(
                        f"first steps logged {time.monotonic() - started:.1f} s after the command"
                    ),
                    once_trained=cluster.leave,
                )
    except KeyboardInterrupt as error:
        begun = folder.exists()
        raise Interrupted(
            f"interrupted; continue with `{folder.command}`"
            if begun
            else "interrupted before the run began; the same command starts it"
        ) from error
    return summary, ui_command(target_of(settings, record))


@contextmanager
def telling(folder: RunFolder, console: Console) -> Iterator[None]:
    """Says why the body ended before anything else is done: leaving the cluster takes seconds.

    An error that nobody has thought of becomes a line as well; its traceback is kept in the run's folder.
    """
    try:
        yield
    except (UserError, StoreError) as error:
        console.fail(error)
        raise
    except Exception as error:
        failed = UserError(
            f"{type(error).__name__}: {first_line(error)}; this is a fault of ssl-ray's own, with its traceback in "
            f"{folder.error_file}; all up to the last checkpoint is kept: continue with `{folder.command}`"
        )
        failed.__cause__ = error
        folder.keep_error(failed)
        console.fail(failed)
        raise failed from error


def train_in(
    folder: RunFolder,
    recipe: Recipe,
    dataset: Dataset,
    record: dict[str, Any],
    *,
    workers: Workers,
    resources: "Resources",
    settings: TrackingSettings,
    console: Console,
    verbose: bool = False,
    tags: Mapping[str, str] | None = None,
    control: Control | None = None,
    init_from: str | None = None,
    alone: bool = False,
    started: float | None = None,
    on_first_step: Callable[[], None] = lambda: None,
    once_trained: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Trains a resolved recipe in `folder` on a connected cluster, tracked in one MLflow run. Returns its summary.

    What `pretrain` does for one recipe and a search for each of its trials. record: what is known of the run, kept in
    its folder; MLflow's ids are added. control: see `Control`. init_from: checkpoint of another run to begin with.
    alone: whether no other run of this command is under way. started: on the monotonic clock, for the summary's
    seconds; now if left out. once_trained: what may be done as soon as the cluster is not needed any more, before
    artifacts are logged.
    """
    from ssl_ray.training import cluster
    from ssl_ray.training.run import begin, follow

    started = time.monotonic() if started is None else started
    info = dataset.train.info
    in_search = control is not None
    with ExitStack() as at_last:
        at_last.enter_context(folder.undone_unless_begun())
        run = begin(
            recipe,
            dataset,
            folder,
            workers=workers,
            resources=resources,
            verbose=verbose,
            init_from=init_from,
            alone=alone,
        )
        # A search tells of its trials itself.
        with run.ended(None if in_search else console):
            prepare(settings.uri, must_exist=settings.must_exist).join()  # a store's first use takes seconds
            tracked = open_tracked(
                settings,
                recipe,
                folder,
                record,
                console,
                tags={
                    "world_size": str(workers),
                    "dataset_digest": info.digest,
                    "ray.job_id": cluster.job_id(),
                }
                | dict(tags or {}),
            )
            ending = at_last.enter_context(_ending(tracked, folder))
            record |= {
                "mlflow_run_id": tracked.run_id,
                "mlflow_experiment_id": tracked.target.experiment_id,
                "mlflow": {"uri": redact(settings.uri), "experiment": settings.experiment},
                "workers": str(workers),
            }
            folder.begin(recipe, record)
            tracker: AnyTracker = make_tracker(tracked.target)
            at_last.enter_context(tracker)
            unless_away(
                console,
                "the data set",
                lambda: tracked.log_dataset(info.name, info.digest, record["data"]),
            )
            artifacts.at_start(tracker, recipe, dataset)

            def first_step() -> None:
                on_first_step()
                # While there is nothing to do but to watch. In a thread: Ctrl-C would leave modules half imported.
                threading.Thread(target=artifacts.import_for_end, daemon=True).start()

            result = follow(
                run,
                folder,
                tracker=tracker,
                console=console,
                control=control,
                on_first_step=first_step,
            )
        once_trained()
        ending.status = _MLFLOW_STATUS.get(result.status, "KILLED")
        tag_alarms(tracked, result.summary.get("alarms", []), console)
        artifacts.at_end(tracker, recipe, result)
    summary = {
        "run": folder.name,
        "status": result.status,
        "folder": folder.uri,
        "checkpoint": result.checkpoint,
        "mlflow_run_id": tracked.run_id,
        "seconds": round(time.monotonic() - started, 1),
        **result.summary,
    }
    if result.status == "finished":
        folder.finish(summary)
    return summary


@dataclass
class _Ending:
    """How an MLflow run ends."""

    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"


@contextmanager
def _ending(tracked: TrackedRun, folder: RunFolder) -> Iterator[_Ending]:
    """Ends the run in MLflow after the body, whatever becomes of that; why it failed is kept in the folder, too."""
    ending, reason = _Ending(), ""
    try:
        yield ending
    except KeyboardInterrupt:
        ending.status = "KILLED"
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        folder.keep_error(error)
        raise
    finally:
        with held():
            tracked.finish(ending.status, reason=reason)


def _alternatives(sizes: Sequence[int]) -> str:
    """2, 4 or 8."""
    return f"{', '.join(map(str, sizes[:-1]))} or {sizes[-1]}"


def alike(one: Recipe, other: Recipe) -> bool:
    """Whether the recipes are the same but for where the weights lie that they begin with."""
    return replace(one, algorithm=one.untrained) == replace(other, algorithm=other.untrained)


def _nothing_to_do(
    console: Console, settings: TrackingSettings, folder: RunFolder, record: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """A finished run is not run again; what MLflow has not got of it is delivered."""
    # Where it is now, which may be elsewhere than when it ended.
    summary: dict[str, Any] = record["summary"] | {
        "folder": folder.uri,
        "checkpoint": folder.latest_checkpoint(),
    }
    target = target_of(settings, record)
    console.print(f"{summary['run']} is finished: {summary['steps']} steps; nothing left to do")
    try:
        require(target.uri)
    except StoreGone as gone:
        console.warn(str(gone))
        return summary, "its store is gone"
    if os.path.isdir(target.folder) and (count := deliver(target.folder, target)):
        console.print(f"MLflow got {count} records kept from before")
    return summary, ui_command(target)


def _fresh(request: Request, console: Console) -> tuple[RunFolder, Recipe, Dataset, dict[str, Any]]:
    dataset, loaded, python_path = open_request(request)
    data = request.data or DEFAULT_DATA
    dataset.tell(console.print, console.warn, f"{loaded.recipe.name} ({loaded.origin}) on {data}")
    resolved = resolve(
        overrides(loaded.recipe, parse_settings(request.settings)),
        dataset.train.info,
        held_out=dataset.val is not None,
    )
    recipe = resolved.recipe
    name = request.name or new_name(recipe.name, dataset.train.info.name)
    folder = RunFolder.at(request.storage, name)
    record = new_record(request, name, dataset, python_path)
    if folder.exists():
        if located(folder.recipe()) != recipe:
            raise UserError(
                f"name: run {name!r} exists in {folder.storage} with another recipe; choose another --name, or "
                f"continue that one with --resume {name}"
            )
        place, record = record["data"], folder.record()
        check_data(name, record, dataset, place)
        record["data"] = place
    for path, origin in resolved.origins.items():
        console.detail(f"{path}: {origin}")
    return folder, recipe, dataset, record


def open_request(request: Request) -> tuple[Dataset, Chosen, list[str]]:
    """The data set and the recipe that a request names, and the folders of the user's own modules. Raises UserError."""
    assert request.recipe is not None
    data = request.data or DEFAULT_DATA
    no_credentials("data", data)
    no_credentials("storage", request.storage)
    python_path = own_modules(request.recipe)
    sys.path += [path for path in python_path if path not in sys.path]
    dataset = open_dataset(data, holdout=request.holdout, **request.columns)
    return dataset, load_recipe(request.recipe, scale=request.scale, info=dataset.train.info), python_path


def new_record(request: Request, name: str, dataset: Dataset, python_path: list[str]) -> dict[str, Any]:
    """What a run's folder says of it from the start."""
    return {
        "name": name,
        "data": lasting(request.data or DEFAULT_DATA),
        "columns": request.columns,
        "holdout": request.holdout,
        "dataset_digest": dataset.train.info.digest,
        "ssl_ray": __version__,
        "python": platform.python_version(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python_path": python_path,
    }


def _continued(request: Request) -> tuple[RunFolder, Recipe, Dataset, dict[str, Any]]:
    assert request.resume is not None
    folder = RunFolder.find(request.resume, request.storage)
    record = folder.record()
    if "command" in record:
        raise UserError(
            f"resume: run {folder.name!r} is no pretraining; continue it with the command that began it: "
            f"{record['command']}"
        )
    sys.path += [path for path in record["python_path"] if path not in sys.path]
    recipe = folder.recipe()
    if request.recipe is not None and request.recipe != recipe.name:
        raise UserError(
            f"resume: run {folder.name!r} trains {recipe.name}, not {request.recipe}; leave the name out"
        )
    if request.data is not None:
        no_credentials("data", request.data)
    again = f"ssl-ray pretrain --resume {shlex.quote(request.resume)}"
    place, dataset = reopen(folder.name, record, request.data, again)
    if place != record["data"]:
        record["data"] = place
        folder.update(data=place)
    # Of the settings only --steps comes with --resume, how far to go now, and where files are.
    return folder, located(overrides(recipe, parse_settings(request.settings))), dataset, record


def no_credentials(option: str, uri: str) -> None:
    """Raises UserError for a URI with a password in it: it would end up in logs, recipes and MLflow."""
    if redact(uri) != uri:
        raise UserError(
            f"{option}: {redact(uri)} holds credentials; put them into the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, ...)"
        )


def _say(request: Request, console: Console, summary: dict[str, Any], mlflow_ui: str) -> None:
    """The end of a run: a line of JSON, or for people a table and where everything is."""
    if request.as_json:
        console.json_line(summary)
        return
    evaluations = summary.get("evaluations") or []
    judged = [e for e in evaluations if "val/knn_top1" in e]
    if judged:
        rows = []
        if (pixels := judged[0].get("baseline/raw_pixels_knn_top1")) is not None:
            rows.append(("raw pixels", pixels))
        rows.append(("untrained network", judged[0]["val/knn_top1"]))
        rows.append((f"after epoch {judged[-1]['epoch']}", judged[-1]["val/knn_top1"]))
        console.table(
            "kNN top-1 on held-out images", ["features", "top-1 %"], [(n, percent(v)) for n, v in rows]
        )
    if summary["status"] == "collapsed":
        console.print(f"collapsed, stopped at step {summary['steps']} (evaluation.on_collapse=stop):")
        for alarm in summary["alarms"]:
            console.print(f"  {alarm}")
        console.print(
            "start a new run with the cause mended; the last checkpoint is of the collapsed network"
        )
    elif summary["status"] != "finished":
        console.print(f"{summary['status']} at step {summary.get('steps', '?')}; continue with:")
        console.print(f"  ssl-ray pretrain --resume {shlex.quote(summary['folder'])}")
    console.print(f"run:    {summary['folder']}")
    console.print(f"MLflow: {mlflow_ui}")
