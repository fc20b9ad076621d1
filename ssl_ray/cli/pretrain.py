"""`ssl-ray pretrain`: train a recipe on images, on this machine or on a cluster."""

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
    Settings,
    SharedStorage,
    Verbose,
    make_console,
    while_ray_starts,
)


def pretrain(
    recipe: OptionalRecipe = None,
    data: OwnData = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="Training workers: a number, or a range such as 2..16, which follows the cluster's size.",
            show_default="1, or as before with --resume",
        ),
    ] = None,
    settings: Settings = None,
    scale: Scale = "auto",
    epochs: Annotated[int | None, typer.Option(min=1, help="Short for --set training.epochs=N.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after N steps; schedules stay those of the whole run.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Short for --set training.seed=N.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The run's name; the same name again continues that run.")
    ] = None,
    storage: SharedStorage = "runs",
    resume: Annotated[
        str | None, typer.Option(help="Continue this run (folder or name) at its next batch.")
    ] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    holdout: Holdout = None,
    address: Address = None,
    cpus_per_worker: CpusPerWorker = None,
    gpus_per_worker: Annotated[float | None, typer.Option(min=0, help="GPUs of each worker.")] = None,
    as_json: JsonAtEnd = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Pretrain a model without labels."""
    from ssl_ray.errors import UserError

    if recipe is None and resume is None:
        raise UserError(
            "pretrain: name what to train, such as `ssl-ray pretrain moco`; `ssl-ray list` shows all"
        )
    with while_ray_starts(address, verbose, recipe=recipe):
        from ssl_ray.rules import FILES
        from ssl_ray.training.pretrain import Request, pretrain
        from ssl_ray.workers import Workers

    kept = {
        # Files may have moved.
        "--set": [s for s in settings or [] if not s.partition("=")[0].strip().endswith(FILES)],
        "--epochs": epochs,
        "--seed": seed,
        "--name": name,
        "--image-column": image_column,
        "--label-column": label_column,
        "--holdout": holdout,
        "--scale": None if scale == "auto" else scale,
    }
    if resume is not None and (
        given := [option for option, value in kept.items() if value not in (None, [])]
    ):
        raise UserError(
            f"resume: a resumed run keeps its recipe, images and name; leave out {', '.join(given)}, or start a "
            "new run"
        )
    shorthands = {"training.epochs": epochs, "training.max_steps": steps, "training.seed": seed}
    summary = pretrain(
        Request(
            recipe=recipe,
            data=data,
            workers=None if workers is None else Workers.parse(workers),
            settings=[*(settings or []), *(f"{k}={v}" for k, v in shorthands.items() if v is not None)],
            scale=scale,
            name=name,
            storage=storage,
            resume=resume,
            columns={"image_column": image_column, "label_column": label_column},
            holdout=0.1 if holdout is None else holdout,
            address=address,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            as_json=as_json,
            verbose=verbose,
        ),
        make_console(as_json, quiet, verbose),
    )
    if summary["status"] == "collapsed":
        raise typer.Exit(3)
    if summary["status"] != "finished":
        raise typer.Exit(130)  # as a shell says of a command that Ctrl-C ended
