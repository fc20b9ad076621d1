"""`ssl-ray report`: one HTML page about one run, or several side by side."""

from pathlib import Path
from typing import Annotated

import typer

from ssl_ray.cli.options import JsonAtEnd, Storage, make_console


def report(
    runs: Annotated[
        list[str], typer.Argument(help="Runs: folders, names, MLflow ids, or beginnings of these.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write.", show_default="report.html in the (first) run's folder"),
    ] = None,
    storage: Storage = "runs",
    images: Annotated[
        int | None,
        typer.Option(min=10, help="Images to take features of.", show_default="2000, or 500 above 64 px"),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Without: numbers and curves alone, in seconds.")
    ] = True,
    as_json: JsonAtEnd = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what takes time.")] = False,
) -> None:
    """Write a page about runs: numbers, curves, recipe, views, reconstructions, neighbours, a map of the features."""
    from ssl_ray.trained.report import Request, report

    report(
        Request(runs, out, storage, images, pictures, as_json),
        make_console(as_json, verbose=verbose),
    )
