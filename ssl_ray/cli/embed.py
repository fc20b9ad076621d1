"""`ssl-ray embed`: features of images, to Parquet."""

from typing import Annotated

import typer


def embed(
    subject: Annotated[
        str,
        typer.Argument(
            help="A run (folder or name), a checkpoint, a .safetensors file of `import`, torchvision:NAME, timm:NAME."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder or URI for the parts; all nodes must reach it.")],
    data: Annotated[
        str | None, typer.Option(help="Images, as of `pretrain`. [default: the run's own]")
    ] = None,
    split: Annotated[str, typer.Option(help="all, train or val.")] = "all",
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    storage: Annotated[str, typer.Option(envvar="SSL_RAY_STORAGE", help="Where runs are kept.")] = "runs",
    random: Annotated[
        bool, typer.Option("--random", help="The same network with untrained weights, drawn from --seed.")
    ] = False,
    size: Annotated[
        int | None, typer.Option(min=8, help="Pixels a side. [default: what the network is meant for]")
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(
            "--actors", "--workers", min=1, help="Processes that make features. [default: by the cluster]"
        ),
    ] = None,
    gpus_per_actor: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each. [default: 1 where there are any]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images in one pass. [default: 256 on a GPU, 64 on a CPU]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --random.")] = 0,
    image_column: Annotated[str | None, typer.Option(help="Parquet column of encoded images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Parquet column of labels.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join. [default: RAY_ADDRESS, else this machine]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results and warnings only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also what Ray says.")] = False,
) -> None:
    """Write features of images to Parquet; the same command again continues where it was stopped.

    Columns: index, path, label where there is one, feature. Parts appear when they are whole. Images are resized and
    cropped, not augmented; those that cannot be decoded are left out, and named in _metadata.json.
    """
    from ssl_ray.console import Console
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
        Console("quiet" if quiet or as_json else "verbose" if verbose else "normal"),
    )
