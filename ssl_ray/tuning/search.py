"""From what a user asked for to a finished search: Ray Tune over a recipe, tracked as one MLflow run with a run in it
for each trial.
"""

import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ssl_ray import experiments
from ssl_ray.console import Console
from ssl_ray.data.source import Dataset
from ssl_ray.errors import Interrupted, UserError
from ssl_ray.recipe import Recipe, overrides, parse_settings
from ssl_ray.rules import located
from ssl_ray.tracking import FOLDER, default_tags, make_tracker, open_run, redact, require, ui_command
from ssl_ray.training import pretrain
from ssl_ray.training.folder import RunFolder, new_name
from ssl_ray.training.notices import Notices
from ssl_ray.training.places import reopen
from ssl_ray.training.stops import held
from ssl_ray.training.tracked import target_of, tracking_of
from ssl_ray.tuning import plots
from ssl_ray.tuning.capacity import Fit, Wanted, fit_growing, fit_trials, parse_cluster
from ssl_ray.tuning.forecast import forecast, show_forecast
from ssl_ray.tuning.objective import METRIC, OBJECTIVES, Objective, choose_objective
from ssl_ray.tuning.outcome import Outcome, best_of, ranked, table
from ssl_ray.tuning.plan import SearchPlan, make_plan
from ssl_ray.tuning.space import Search, format_space, from_json, parse_searches, to_json
from ssl_ray.workers import Workers

SEARCH_FILE, BEST_FILE, TUNE_FOLDER = "search.json", "best.json", "tune"
# Read by Ray Tune in the driver: no files of its own besides the state it resumes from, written every few seconds; a
# trial may send a heartbeat before its first evaluation.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Request:
    """What the user asked for: the options of `ssl-ray tune`. base: those it shares with `ssl-ray pretrain`."""

    base: pretrain.Request
    searches: Sequence[str] = ()
    scheduler: str = "asha"
    objective: str | None = None
    trials: int | None = None
    concurrent: int | None = None
    max_epochs: int | None = None
    seed: int = 0
    gpus_per_trial: float | None = None
    time_budget: str | None = None
    cluster: str | None = None
    dry_run: bool = False


@dataclass
class _Search:
    """A search that is ready to start, new or continued."""

    folder: RunFolder
    recipe: Recipe
    dataset: Dataset
    plan: SearchPlan
    objective: Objective
    record: dict[str, Any]
    workers: int
    resumed: bool = False
    outcomes: list[Outcome] = field(default_factory=list)


def tune(request: Request, console: Console) -> dict[str, Any]:
    """Runs a search to its end and says how it went; with `dry_run` only what it would do. Returns what --json prints.

    Raises UserError for whatever the user can mend.
    """
    with Notices(console.warn):
        seconds = parse_duration(request.time_budget)
        search = _continued(request) if request.base.resume else _fresh(request)
        if not search.resumed:
            head = f"{search.recipe.name} ({search.record['origin']}) on {search.record['data']}"
            search.dataset.tell(console.print, console.warn, head)
        if request.dry_run:
            return _dry_run(request, search, console)
        if search.resumed and "summary" in search.record:
            # Where it is now, which may be elsewhere than when it ended.
            here = {"folder": search.folder.uri}
            if search.record["summary"]["best_recipe"] is not None:
                here["best_recipe"] = f"{search.folder.uri}/{BEST_FILE}"
            return _say(request, search, search.record["summary"] | here, console)
        try:
            return _run(request, search, seconds, console)
        except KeyboardInterrupt as error:
            folder = search.folder
            again = f"continue with `ssl-ray tune --resume {shlex.quote(folder.uri)}`"
            begun = folder.holds(SEARCH_FILE)
            raise Interrupted(f"interrupted; {again if begun else 'the same command starts it'}") from error


def parse_duration(text: str | None) -> float | None:
    """Seconds of "90s", "30m", "2h" or "1d"; None of None. Raises UserError."""
    if text is None:
        return None
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    try:
        seconds = float(text[:-1]) * unit if unit else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"time-budget: {text!r}; write a number and s, m, h or d, such as 30m")
    return seconds


def _fresh(request: Request) -> _Search:
    base = request.base
    dataset, chosen, python_path = pretrain.open_request(base)
    settings = parse_settings(base.settings)
    recipe = located(overrides(chosen.recipe, settings))
    given = parse_searches(request.searches)
    # What the user set stays as it is, unless searched by name.
    space = {p: s for p, s in _own_space(str(base.recipe), recipe).items() if p not in settings} | given
    objective = choose_objective(request.objective, dataset)
    plan, recipe = make_plan(
        recipe,
        space,
        scheduler=request.scheduler,
        trials=request.trials,
        max_epochs=request.max_epochs,
        seed=request.seed,
        chosen=settings,
    )
    workers = base.workers.most if base.workers else max(1, int(request.gpus_per_trial or 1))
    from ssl_ray.resolve import resolve
    from ssl_ray.training.preflight import preflight

    sizes = Workers.exactly(workers).sizes(recipe)
    # What trials have in common.
    preflight(resolve(recipe, dataset.train.info, held_out=dataset.val is not None).recipe, sizes)
    name = base.name or new_name("tune", recipe.name, dataset.train.info.name)
    folder = RunFolder.at(base.storage, name)
    if not request.dry_run and folder.holds(SEARCH_FILE):
        raise UserError(
            f"name: search {name!r} exists in {folder.storage}; continue it with --resume {name}, or choose another "
            "--name"
        )
    record = pretrain.new_record(base, name, dataset, python_path) | {
        "recipe": recipe.to_json(),
        "search": to_json(space),
        "objective": objective.name,
        "workers": workers,
        "origin": chosen.origin,
        "plan": {
            "scheduler": plan.scheduler,
            "trials": plan.trials if plan.scheduler != "grid" else None,
            "seed": plan.seed,
            "chosen": [*settings, "evaluation.every_epochs"],
        },
    }
    return _Search(folder, recipe, dataset, plan, objective, record, workers)


def _continued(request: Request) -> _Search:
    base = request.base
    folder = RunFolder.find(str(base.resume), base.storage, holds=SEARCH_FILE)
    record = folder.read(SEARCH_FILE)
    sys.path += [path for path in record["python_path"] if path not in sys.path]
    if base.data is not None:
        pretrain.no_credentials("data", base.data)
    place, dataset = reopen(
        folder.name, record, base.data, f"ssl-ray tune --resume {shlex.quote(str(base.resume))}"
    )
    if place != record["data"]:
        record["data"] = place
        folder.write(SEARCH_FILE, record)
    plan, recipe = make_plan(
        Recipe.from_json(record["recipe"]), from_json(record["search"]), max_epochs=None, **record["plan"]
    )
    return _Search(
        *(folder, recipe, dataset, plan, OBJECTIVES[record["objective"]], record),
        workers=base.workers.most if base.workers else record["workers"],
        resumed=True,
    )


def _own_space(source: str, recipe: Recipe) -> Search:
    """The SEARCH of the file that a recipe comes from; of a recipe.json, that of the built-in of its name."""
    file = source.partition(":")[0]
    if source.endswith(".json"):
        if recipe.name not in experiments.names():
            return {}
        file = recipe.name
    found: Search = getattr(experiments.load(file), "SEARCH", {})
    return found


def _wanted(request: Request, search: _Search) -> Wanted:
    return Wanted(
        workers=search.workers,
        trials=search.plan.trials,
        concurrent=request.concurrent,
        cpus_per_worker=request.base.cpus_per_worker,
        gpus_per_trial=request.gpus_per_trial,
    )


def _dry_run(request: Request, search: _Search, console: Console) -> dict[str, Any]:
    if request.cluster is not None:
        nodes = parse_cluster(request.cluster)
    else:
        from ssl_ray.training import cluster

        with cluster.joined(request.base.address, verbose=request.base.verbose):
            nodes = cluster.alive_nodes()
    said = forecast(search.plan, fit_trials(nodes, **_wanted(request, search)), nodes, search.objective)
    if request.base.as_json:
        console.json_line(said)
    else:
        show_forecast(said, search.plan, console)
    return said


def _run(request: Request, search: _Search, seconds: float | None, console: Console) -> dict[str, Any]:
    started = time.monotonic()
    base, plan, folder, record = request.base, search.plan, search.folder, search.record
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from ssl_ray.training import cluster, head, reach

    settings = tracking_of(folder, record)
    if settings.must_exist:
        require(settings.uri)
    with cluster.joined(base.address, verbose=base.verbose, python_path=record["python_path"]):
        fit = fit_growing(console.print, **_wanted(request, search))
        if fit.crowded:
            console.warn(
                f"concurrent: {fit.concurrent} trials share {fit.data_cpus:g} CPUs for their data and wait for each "
                "other; fewer --concurrent may be faster"
            )
        images = (search.dataset.train, search.dataset.val)
        reach.require(console.warn, images=images, storage=folder.storage, tracking=settings.uri)
        console.print(
            f"{plan.trials} trials of at most {plan.max_epochs} epochs, {fit.concurrent} at a time, {plan.scheduler}; "
            f"{search.objective.name} decides"
        )
        for path in plan.search if plan.mutated else ():
            if path not in plan.mutated:
                console.print(f"{path}: not changed while a trial trains; it goes with the weights")
        parent = open_run(
            settings,
            name=folder.name,
            params={
                "name": search.recipe.name,
                "data": record["data"],
                "scheduler": plan.scheduler,
                "objective": search.objective.name,
                "trials": plan.trials,
                "max_epochs": plan.max_epochs,
                "seed": plan.seed,
                "workers": search.workers,
                "search": {path: format_space(space) for path, space in plan.search.items()},
            },
            tags=default_tags() | {"ray.job_id": cluster.job_id(), "search": "parent", FOLDER: folder.uri},
            run_id=record.get("mlflow_run_id"),
        )
        record |= {
            "mlflow_run_id": parent.run_id,
            "mlflow_experiment_id": parent.target.experiment_id,
            "mlflow": {"uri": redact(settings.uri), "experiment": settings.experiment},
        }
        folder.create()
        folder.write(SEARCH_FILE, record)
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        try:
            again = f"ssl-ray tune --resume {shlex.quote(folder.uri)}"
            hint = f"the search is kept in {folder.uri}: continue with `{again}`"
            with head.watched(hint), make_tracker(parent.target) as tracker:
                outcomes = _fit_tuner(search, fit, settings, parent.run_id, tracker, seconds, console, base)
                search.outcomes = outcomes
                cut = len(outcomes) < plan.trials or any(
                    o.status in ("waiting", "running", "interrupted") for o in outcomes
                )
                # A budget that is used up is a search that did as it was told.
                interrupted = cut and (seconds is None or time.monotonic() - started < seconds)
                status = "KILLED" if interrupted else "FINISHED"
                summary = _summary(search, started, interrupted)
                for file, figure in (
                    (
                        "parallel_coordinates.png",
                        plots.parallel_coordinates(outcomes, plan.search, search.objective.name),
                    ),
                    ("learning_curves.png", plots.learning_curves(outcomes, search.objective.name)),
                ):
                    if figure is not None:
                        tracker.log_figure(figure, file)
                if summary["best"] is not None:
                    best = folder.below(summary["best"]["run"]).recipe().to_json()
                    folder.write(BEST_FILE, best)
                    tracker.log_text(json.dumps(best, indent=2), BEST_FILE)
                tracker.log_text(json.dumps(summary, indent=2), "summary.json")
        finally:
            with held():
                parent.finish(status)
    if not interrupted:
        folder.write(SEARCH_FILE, record | {"summary": summary})
    return _say(request, search, summary, console)


def _fit_tuner(
    search: _Search,
    fit: Fit,
    settings: Any,
    parent: str,
    tracker: Any,
    seconds: float | None,
    console: Console,
    base: pretrain.Request,
) -> list[Outcome]:
    """Hands the search to Ray Tune. Returns what became of the trials; some wait still after a Ctrl-C."""
    import logging

    from ray import tune as ray_tune

    from ssl_ray.tuning.progress import Progress
    from ssl_ray.tuning.schedule import make_parts
    from ssl_ray.tuning.trial import Trial, TrialJob

    plan, folder = search.plan, search.folder
    job = TrialJob(
        recipe=search.recipe,
        dataset=search.dataset,
        storage=folder.uri,
        record={
            name: search.record[name]
            for name in ("data", "columns", "holdout", "dataset_digest", "ssl_ray", "python", "python_path")
        }
        | {"search": folder.name},
        settings=settings,
        parent=parent,
        workers=search.workers,
        resources=fit.resources,
        objective=search.objective,
        interval=plan.interval if plan.scheduler == "pbt" else None,
        alone=fit.concurrent == 1,
        verbose=base.verbose,
    )
    # A trial's own process only waits. It takes memory of its node's and no CPU: a hundredth of a CPU taken here is a
    # whole one that no data task finds free.
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(Trial, job=job), ray_tune.PlacementGroupFactory([{"memory": 1.0}])
    )
    if not base.verbose:
        for name in ("ray.tune", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with console.progress(plan.most_epochs, folder.name) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        progress = Progress(
            console, bar, tracker, search.objective, trials=plan.trials, max_epochs=plan.max_epochs
        )
        run_config = ray_tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=folder.uri,
            callbacks=[progress],
            verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=0),
            checkpoint_config=ray_tune.CheckpointConfig(num_to_keep=4, checkpoint_at_end=False),
        )
        path = folder.below(TUNE_FOLDER).uri
        if search.resumed and ray_tune.Tuner.can_restore(path):
            tuner = ray_tune.Tuner.restore(
                path, trainable=trainable, resume_unfinished=True, resume_errored=True
            )
            # What was there is kept; the callback is new, for it holds this process's console.
            tuner._local_tuner._run_config.callbacks = [progress]
            tuner._local_tuner._tune_config.time_budget_s = seconds
        else:
            parts = make_parts(plan, fit.concurrent)
            tuner = ray_tune.Tuner(
                trainable,
                param_space=parts.space,
                tune_config=ray_tune.TuneConfig(
                    metric=METRIC,
                    mode="max",
                    search_alg=parts.searcher,
                    scheduler=parts.scheduler,
                    num_samples=parts.num_samples,
                    time_budget_s=seconds,
                    reuse_actors=False,
                ),
                run_config=run_config,
            )
        tuner.fit()
    return progress.outcomes


def _summary(search: _Search, started: float, interrupted: bool) -> dict[str, Any]:
    best = best_of(search.outcomes)
    return {
        "search": search.folder.name,
        "status": "interrupted" if interrupted else "finished",
        "folder": search.folder.uri,
        "objective": search.objective.name,
        "scheduler": search.plan.scheduler,
        "mlflow_run_id": search.record["mlflow_run_id"],
        "seconds": round(time.monotonic() - started, 1),
        "trial_epochs": round(sum(o.epoch for o in search.outcomes), 2),
        "best": None
        if best is None
        else {"trial": best.name, "run": best.run, "score": best.score, "epoch": best.epoch},
        "best_recipe": None if best is None else f"{search.folder.uri}/{BEST_FILE}",
        "trials": [
            {
                "trial": o.name,
                "run": o.run,
                "status": o.status,
                "score": o.score,
                "epoch": o.epoch,
                "cause": o.cause,
                "values": {
                    p: v if isinstance(v, str | int | float | bool | None) else str(v)
                    for p, v in o.values.items()
                },
            }
            for o in ranked(search.outcomes)
        ],
    }


def _say(request: Request, search: _Search, summary: dict[str, Any], console: Console) -> dict[str, Any]:
    """The end of a search: a line of JSON, or for people the trials, best first, and where everything is."""
    if request.base.as_json:
        console.json_line(summary)
        return summary
    outcomes = search.outcomes or [
        Outcome(t["trial"], t["run"], t["values"], t["status"], t["score"], t["epoch"], cause=t["cause"])
        for t in summary["trials"]
    ]
    columns, rows = table(outcomes, list(search.plan.search), search.objective.name)
    console.table("Trials, best first", columns, rows)
    if summary["status"] != "finished":
        console.print(f"interrupted; continue with:\n  ssl-ray tune --resume {summary['folder']}")
    if summary["best"] is not None:
        console.print(f"best:   ssl-ray pretrain {summary['best_recipe']}")
    console.print(f"search: {summary['folder']}")
    settings = tracking_of(search.folder, search.record)
    console.print(f"MLflow: {ui_command(target_of(settings, search.record))}")
    return summary
