"""The typer application. A new verb: its function in a file of its own beside this one, and a line at the end here.

Only typer and the shared options may be imported at the top of a verb's file, so that `--help` stays quick.
"""

from typing import Annotated

import typer

from ssl_ray import __version__
from ssl_ray.cli.cluster import app as cluster
from ssl_ray.cli.data import app as data
from ssl_ray.cli.embed import embed
from ssl_ray.cli.evaluate import evaluate
from ssl_ray.cli.export import export_backbone
from ssl_ray.cli.import_ import import_checkpoint
from ssl_ray.cli.list_ import list_recipes
from ssl_ray.cli.pretrain import pretrain
from ssl_ray.cli.report import report
from ssl_ray.cli.runs import app as runs
from ssl_ray.cli.show import show
from ssl_ray.cli.tune import tune

app = typer.Typer(
    name="ssl-ray",
    help="Pretrain image models without labels: on one machine or on a cluster, with the same command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ssl-ray {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def version() -> None:
    """Print the version."""
    _print_version(True)


app.command()(pretrain)
app.command()(tune)
app.add_typer(data, name="data")
app.command("list")(list_recipes)
app.command()(show)
app.command()(report)
app.add_typer(runs, name="runs")
app.command("import")(import_checkpoint)
app.command("export")(export_backbone)
app.command()(evaluate)
app.command()(embed)
app.add_typer(cluster, name="cluster")
app.command()(version)
