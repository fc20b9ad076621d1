"""`ssl-ray embed`: features of images, to Parquet."""

from typing import Annotated

import typer

from ssl_ray.cli.options import (
    Address,
    BatchSize,
    GpusPerActor,
    ImageColumn,
    JsonAtEnd,
    LabelColumn,
    Quiet,
    Size,
    Storage,
    Subject,
    make_console,
    while_ray_starts,
)


def embed(
    subject: Subject,
    out: Annotated[str, typer.Option(help="Folder or URI for the parts; all nodes must reach it.")],
    data: Annotated[
        str | None, typer.Option(help="Images, as of `pretrain`.", show_default="the run's own")
    ] = None,
    split: Annotated[str, typer.Option(help="all, train or val.")] = "all",
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    storage: Storage = "runs",
    random: Annotated[
        bool, typer.Option("--random", help="The same network with untrained weights, drawn from --seed.")
    ] = False,
    size: Size = None,
    actors: Annotated[
        int | None,
        typer.Option(
            "--actors",
            "--workers",
            min=1,
            help="Processes that make features.",
            show_default="by the cluster",
        ),
    ] = None,
    gpus_per_actor: GpusPerActor = None,
    batch_size: BatchSize = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --random.")] = 0,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    address: Address = None,
    as_json: JsonAtEnd = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also what Ray says.")] = False,
) -> None:
    """Write features of images to Parquet; the same command again continues where it was stopped.

    Columns: index, path, label where there is one, feature. Parts appear when they are whole. Images are resized and
    cropped, not augmented; those that cannot be decoded are left out, and named in _metadata.json.
    """
    with while_ray_starts(address, verbose):
        from ssl_ray.trained.case import Means
        from ssl_ray.trained.embed import Request, embed

    embed(
        Request(
            subject=subject,
            out=out,
            data=data,
            columns={"image_column": image_column, "label_column": label_column},
            split=split,
            dtype=dtype,
            storage=storage,
            random=random,
            size=size,
            seed=seed,
            means=Means(
                address=address,
                actors=actors,
                gpus_per_actor=gpus_per_actor,
                batch_size=batch_size,
                verbose=verbose,
            ),
            as_json=as_json,
        ),
        make_console(as_json, quiet, verbose),
    )
