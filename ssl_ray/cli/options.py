"""The arguments and options that several verbs share, each written once, and the console that they choose.

An option that one verb explains in words of its own stays in that verb's file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ssl_ray.console import Console

# What to work on.
_RECIPE = typer.Argument(help="An algorithm (see `ssl-ray list`), a recipe.json, or a file.py[:NAME].")
Recipe = Annotated[str, _RECIPE]
OptionalRecipe = Annotated[str | None, _RECIPE]  # --resume takes its place
Subject = Annotated[
    str,
    typer.Argument(
        help="A run (folder or name), a checkpoint, a .safetensors file of `import`, torchvision:NAME, timm:NAME."
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="path=value, such as algorithm.backbone.depth=18.")
]
Scale = Annotated[str, typer.Option(help="auto, paper or small.")]

# The images.
# Of what is resumed: where its images are now.
OwnData = Annotated[
    str | None,
    typer.Option(
        help="fashion, digits, torchvision:NAME, a folder, Parquet, s3://...; with --resume where the same images are "
        "now.",
        show_default="fashion",
    ),
]
ImageColumn = Annotated[str | None, typer.Option(help="Parquet column of encoded images.")]
LabelColumn = Annotated[str | None, typer.Option(help="Parquet column of labels; '' for none.")]
Holdout = Annotated[
    float | None,
    typer.Option(help="Share held out for evaluation where the data has no split.", show_default="0.1"),
]
Size = Annotated[
    int | None, typer.Option(min=8, help="Pixels a side.", show_default="what the network is meant for")
]

# Where to work, and with how much.
Storage = Annotated[str, typer.Option(envvar="SSL_RAY_STORAGE", help="Where runs are kept.")]
# For verbs whose workers write there.
SharedStorage = Annotated[
    str, typer.Option(envvar="SSL_RAY_STORAGE", help="Where runs are kept; all nodes must reach it.")
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join.", show_default="RAY_ADDRESS, else this machine")
]
CpusPerWorker = Annotated[float | None, typer.Option(min=0.05, help="CPUs of each worker.")]
GpusPerActor = Annotated[
    float | None, typer.Option(min=0, help="GPUs of each.", show_default="1 where there are any")
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Images in one pass.", show_default="256 on a GPU, 64 on a CPU")
]

# What to say.
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
# For verbs that have work to do before it, and may say other things meanwhile.
JsonAtEnd = Annotated[bool, typer.Option("--json", help="End with one line of JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and warnings only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also details, and what Ray says.")]


def make_console(as_json: bool, quiet: bool = False, verbose: bool = False) -> "Console":
    """The console for these options; JSON stands in place of what a person would read."""
    from ssl_ray.console import Console

    return Console("quiet" if quiet or as_json else "verbose" if verbose else "normal")


@contextmanager
def while_ray_starts(
    address: str | None, verbose: bool, *, recipe: str | None = None, wanted: bool = True
) -> Iterator[None]:
    """Around what a verb imports: the cluster that the command starts for itself begins to start beside it.

    Not where it is to join another one, or none is `wanted`. recipe: one that the user names, whose modules workers
    import; without one no folder is added to Python's path here, which for a run that exists is that run's affair.
    Raises Interrupted for Ctrl-C.
    """
    from ssl_ray.errors import Interrupted
    from ssl_ray.training import local_cluster

    try:
        if wanted:
            python_path = local_cluster.own_modules(recipe) if recipe is not None else ()
            local_cluster.begin(address, python_path=python_path, verbose=verbose)
        yield
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted before anything began; the same command starts it") from error
