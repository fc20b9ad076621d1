"""`ssl-ray runs`: find runs in MLflow, look at one, compare several, name the best."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_ray.cli.options import Json, make_console

if TYPE_CHECKING:
    from ssl_ray.console import Console
    from ssl_ray.tracking import History, PastRun

app = typer.Typer(help="List, show and compare runs; without a verb: list.", invoke_without_command=True)

Algorithm = Annotated[str | None, typer.Option(help="Only runs of this algorithm.")]
Status = Annotated[str | None, typer.Option(help="finished, running, failed or killed.")]
Data = Annotated[str | None, typer.Option(help="Only on data whose name or address holds this.")]
Since = Annotated[str | None, typer.Option(help="30m, 12h, 2d, 1w, or a date.")]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Metric or parameter and value, such as 'val/knn_top1>0.7' or training.epochs=20."),
]
Sort = Annotated[str, typer.Option(help="started, name, duration or a metric.")]
Reverse = Annotated[bool, typer.Option("--reverse", help="The other way round.")]
Limit = Annotated[int, typer.Option(min=0, help="At most so many; 0 for all.")]
Experiment = Annotated[
    str | None, typer.Option(help="MLflow experiment.", show_default="MLFLOW_EXPERIMENT_NAME, else ssl-ray")
]
Run = Annotated[str, typer.Argument(help="A run's name, its MLflow id, or the beginning of either.")]
Runs = Annotated[list[str], typer.Argument(help="Names, MLflow ids, or beginnings of them.")]


@app.callback()
def runs(
    context: typer.Context,
    algorithm: Algorithm = None,
    status: Status = None,
    data: Data = None,
    since: Since = None,
    where: Where = None,
    sort: Sort = "started",
    reverse: Reverse = False,
    limit: Limit = 30,
    experiment: Experiment = None,
    as_json: Json = False,
) -> None:
    """List, show and compare runs; without a verb: list."""
    if (verb := context.invoked_subcommand) is not None:
        given = [name for name in context.params if _typed(context, name)]
        if given:
            raise _misplaced(given[0], verb)
    else:
        list_runs(algorithm, status, data, since, where, sort, reverse, limit, experiment, as_json)


@app.command("list")
def list_runs(
    algorithm: Algorithm = None,
    status: Status = None,
    data: Data = None,
    since: Since = None,
    where: Where = None,
    sort: Sort = "started",
    reverse: Reverse = False,
    limit: Limit = 30,
    experiment: Experiment = None,
    as_json: Json = False,
) -> None:
    """List runs, the newest first; the trials of a search stand below it."""
    from ssl_ray.trained import runs as past

    history, console = _open(experiment, as_json)
    chosen = past.Filter(algorithm, status, data, since, where or ())(history.runs())
    ordered = past.order(chosen, sort)
    placed = past.nested(ordered[::-1] if reverse else ordered)
    shown = placed[:limit] if limit else placed
    if as_json:
        console.json_line([past.as_json(run) for _, run in shown])
        return
    if not shown:
        console.print("no run is like that; `ssl-ray runs` without options lists all")
        return
    title = f"Runs of {history.settings.experiment}"
    if len(shown) < len(placed):
        title += f" ({len(shown)} of {len(placed)}; --limit 0 for all)"
    console.table(title, past.COLUMNS, [past.row(run, depth) for depth, run in shown])


@app.command()
def show(
    run: Run,
    params: Annotated[bool, typer.Option("--params", help="Also the recipe, value by value.")] = False,
    experiment: Experiment = None,
    as_json: Json = False,
) -> None:
    """Show one run: where it ran, on what, and the last value of every metric."""
    from ssl_ray.trained import runs as past

    history, console = _open(experiment, as_json)
    found = history.find(run)
    if as_json:
        console.json_line(past.as_json(found))
        return
    console.table(found.name, ["what", "value"], past.facts(found))
    console.table("Metrics", ["metric", "last"], [(k, f"{v:.6g}") for k, v in sorted(found.metrics.items())])
    if params:
        console.table("Recipe", ["parameter", "value"], sorted(found.params.items()))


@app.command()
def compare(run: Runs, experiment: Experiment = None, as_json: Json = False) -> None:
    """Compare runs: the parameters that differ, and the last value of every metric, side by side."""
    from ssl_ray.errors import UserError
    from ssl_ray.trained import runs as past

    if len(run) < 2:
        raise UserError("compare: name two runs or more; `ssl-ray runs show` looks at one")
    history, console = _open(experiment, as_json)
    found = _find_all(history, run)
    differing = past.differing_params(found)
    if as_json:
        console.json_line({"runs": [past.as_json(r) for r in found], "differing_params": differing})
        return
    names = [r.name for r in found]
    if differing:
        console.table(
            "Parameters that differ", ["parameter", *names], [(k, *v) for k, v in differing.items()]
        )
    else:
        console.print("the recipes are the same")
    metrics = sorted({m for r in found for m in r.metrics})
    rows = [(m, *(f"{r.metrics[m]:.5g}" if m in r.metrics else None for r in found)) for m in metrics]
    console.table("Metrics, last value", ["metric", *names], rows)


@app.command()
def best(
    metric: Annotated[str, typer.Option(help="Judge by the last value of this.")] = "val/knn_top1",
    lowest: Annotated[
        bool | None,
        typer.Option("--lowest/--highest", help="Which is best.", show_default="told from the metric's name"),
    ] = None,
    algorithm: Algorithm = None,
    status: Status = None,
    data: Data = None,
    since: Since = None,
    where: Where = None,
    limit: Limit = 1,
    experiment: Experiment = None,
    as_json: Json = False,
) -> None:
    """Name the best run, or with --limit the best few."""
    from ssl_ray.trained import runs as past

    history, console = _open(experiment, as_json)
    chosen = past.Filter(algorithm, status, data, since, where or ())(history.runs())
    if not chosen:
        if as_json:
            console.json_line([])
        else:
            console.print("no run is like that; `ssl-ray runs` without options lists all")
        return
    ranked = past.best(chosen, metric, lowest)
    shown = ranked[:limit] if limit else ranked
    if as_json:
        console.json_line([past.as_json(run) for run in shown])
        return
    rows = [(r.name, f"{r.metrics[metric]:.6g}", *past.row(r)[1:]) for r in shown]
    title = f"Best by {metric}, of {len(ranked)} runs that have it"
    console.table(title, ["run", metric, *past.COLUMNS[1:]], rows)


@app.command()
def moved(
    old: Annotated[str, typer.Argument(help="Folder in which a project was: absolute.")],
    new: Annotated[str, typer.Argument(help="Folder in which it is now.")],
    as_json: Json = False,
) -> None:
    """Tell MLflow's SQLite store that a project has moved: it keeps its artifacts by whole paths."""
    import os

    from ssl_ray.tracking import move_artifacts, tracking_settings

    settings = tracking_settings(".", must_exist=True)
    changed = move_artifacts(settings.uri, os.path.normpath(old), os.path.abspath(new))
    console = make_console(as_json)
    if as_json:
        console.json_line({"old": old, "new": os.path.abspath(new), "changed": changed})
    else:
        console.print(f"{changed} places of artifacts are below {os.path.abspath(new)} now")


def _typed(context: typer.Context, name: str) -> bool:
    """Whether an option was given, rather than left at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _misplaced(name: str, verb: str) -> Exception:
    from ssl_ray.errors import UserError

    option = "--json" if name == "as_json" else f"--{name.replace('_', '-')}"
    return UserError(
        f"{option}: stands before {verb!r} and would be lost; write `ssl-ray runs {verb} {option} ...`"
    )


def _open(experiment: str | None, as_json: bool) -> "tuple[History, Console]":
    from ssl_ray.tracking import open_history, tracking_settings

    return open_history(tracking_settings(".", experiment=experiment)), make_console(as_json)


def _find_all(history: "History", names: Sequence[str]) -> "list[PastRun]":
    """Each run once, in the order given."""
    found = {run.run_id: run for run in map(history.find, names)}
    return list(found.values())
