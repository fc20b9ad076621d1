"""`ssl-ray tune`: search a recipe's settings with Ray Tune."""

from typing import Annotated

import typer

from ssl_ray.cli.options import (
    Address,
    CpusPerWorker,
    Holdout,
    ImageColumn,
    JsonAtEnd,
    LabelColumn,
    OptionalRecipe,
    OwnData,
    Quiet,
    Scale,
    SharedStorage,
    make_console,
    while_ray_starts,
)


def tune(
    recipe: OptionalRecipe = None,
    data: OwnData = None,
    searches: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            help="path=space, such as optimization.base_lr=loguniform(1e-4,1e-1); adds to the recipe's, or replaces.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="path=value for all trials; not searched then.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option("--scheduler", "--algorithm", help="asha, random, grid, pbt or optuna.")
    ] = "asha",
    trials: Annotated[
        int | None, typer.Option(min=1, help="How many.", show_default="12; grid: every combination")
    ] = None,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time.", show_default="what the cluster holds")
    ] = None,
    max_epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs of a trial that is not stopped.", show_default="the recipe's"),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="knn_top1, rankme or embedding_std.", show_default="knn_top1 with labels, else rankme"
        ),
    ] = None,
    time_budget: Annotated[
        str | None, typer.Option(help="Stop what trains after so long: 90s, 30m, 2h, 1d.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Training workers of each trial.", show_default="one per GPU, or 1"),
    ] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each trial, also a part of one.")
    ] = None,
    cpus_per_worker: CpusPerWorker = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which values are tried.")] = 0,
    scale: Scale = "auto",
    name: Annotated[str | None, typer.Option(help="The search's name.")] = None,
    storage: SharedStorage = "runs",
    resume: Annotated[
        str | None,
        typer.Option(
            help="Continue this search (folder or name); ended trials are kept. Never a stranger's: Ray Tune's own "
            "files in it are pickles, which run code when they are read."
        ),
    ] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    holdout: Holdout = None,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and end.")] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="With --dry-run: the totals of a cluster to plan for, such as gpus=16,cpus=128,nodes=4."
        ),
    ] = None,
    as_json: JsonAtEnd = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also evaluations, and what Ray says.")
    ] = False,
) -> None:
    """Search a recipe's settings: many short pretrainings, the best of them kept."""
    from ssl_ray.errors import UserError

    if recipe is None and resume is None:
        raise UserError("tune: name what to tune, such as `ssl-ray tune mae`; `ssl-ray list` shows all")
    if cluster is not None and not dry_run:
        raise UserError("cluster: a cluster to plan for goes with --dry-run; to use one, say --address")
    with while_ray_starts(address, verbose, recipe=recipe, wanted=cluster is None):
        from ssl_ray.training.pretrain import Request as Base
        from ssl_ray.tuning.search import Request, tune
        from ssl_ray.workers import Workers

    kept = {
        "RECIPE": recipe,
        "--search": searches,
        "--set": settings,
        "--scheduler": None if scheduler == "asha" else scheduler,
        "--trials": trials,
        "--max-epochs": max_epochs,
        "--objective": objective,
        "--seed": seed or None,
        "--scale": None if scale == "auto" else scale,
        "--name": name,
        "--image-column": image_column,
        "--label-column": label_column,
        "--holdout": holdout,
    }
    if resume is not None and (
        given := [option for option, value in kept.items() if value not in (None, [])]
    ):
        raise UserError(
            f"resume: a resumed search stays what it was; leave out {', '.join(given)}, or start a new search"
        )
    summary = tune(
        Request(
            base=Base(
                recipe=recipe,
                data=data,
                workers=None if workers is None else Workers.exactly(workers),
                settings=settings or [],
                scale=scale,
                name=name,
                storage=storage,
                resume=resume,
                columns={"image_column": image_column, "label_column": label_column},
                holdout=0.1 if holdout is None else holdout,
                address=address,
                cpus_per_worker=cpus_per_worker,
                as_json=as_json,
                verbose=verbose,
            ),
            searches=searches or [],
            scheduler=scheduler,
            objective=objective,
            trials=trials,
            concurrent=concurrent,
            max_epochs=max_epochs,
            seed=seed,
            gpus_per_trial=gpus_per_trial,
            time_budget=time_budget,
            cluster=cluster,
            dry_run=dry_run,
        ),
        make_console(as_json, quiet, verbose),
    )
    if summary.get("status") == "interrupted":
        raise typer.Exit(130)  # as a shell says of a command that Ctrl-C ended
