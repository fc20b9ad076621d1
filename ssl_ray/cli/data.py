"""`ssl-ray data`: look at images and what views make of them, check them, pack them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_ray.cli.options import ImageColumn, JsonAtEnd, LabelColumn, Scale, make_console

if TYPE_CHECKING:
    from ssl_ray.console import Console

app = typer.Typer(help="Prepare, verify and preview image data.", no_args_is_help=True)

Uri = Annotated[str, typer.Argument(help="fashion, digits, torchvision:NAME, a folder, Parquet, s3://...")]


@app.command()
def prepare(
    data: Uri,
    out: Annotated[str, typer.Option(help="Folder or URI for the shards; must be empty.")],
    resize: Annotated[
        int | None, typer.Option(min=8, help="Scale larger images to this shorter side, pixels.")
    ] = None,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard, MB.")] = 256,
    holdout: Annotated[
        float, typer.Option(help="Share held out for evaluation where the data has no split.")
    ] = 0.1,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    as_json: JsonAtEnd = False,
) -> None:
    """Pack images into Arrow shards that every worker reads at random; continues where it was stopped."""
    from ssl_ray.data.prepare import prepare_dataset
    from ssl_ray.data.source import open_dataset

    console = make_console(as_json)
    dataset = open_dataset(data, image_column=image_column, label_column=label_column, holdout=holdout)
    dataset.tell(console.print, console.warn, data)
    with console.task("packing") as on_progress:
        parts = prepare_dataset(
            dataset, out, shard_bytes=shard_mb * 10**6, resize=resize, on_progress=on_progress
        )
    if as_json:
        console.json_line(parts)
        return
    rows = [(name, p.num_samples, p.num_shards, p.shards_written, len(p.broken)) for name, p in parts.items()]
    console.table(f"Packed into {out}", ["part", "images", "shards", "written now", "broken"], rows)
    for part in parts.values():
        for broken in part.broken:
            console.warn(f"{broken[1]}: {broken[2]}")
        _tell_left_out(console, part.left_out)
    console.print(f"use it: ssl-ray pretrain ALGORITHM --data {out}")


@app.command()
def verify(
    data: Uri, image_column: ImageColumn = None, label_column: LabelColumn = None, as_json: JsonAtEnd = False
) -> None:
    """Decode every image and name the broken ones; exit status 1 if there are any."""
    from ssl_ray.data.source import open_dataset
    from ssl_ray.data.verify import Report, verify

    console = make_console(as_json)
    columns = {"image_column": image_column, "label_column": label_column}
    dataset = open_dataset(data, **columns, holdout=0)
    dataset.tell(console.print, console.warn, data)
    # What a run leaves alone is verified, too.
    unused = [
        open_dataset(uri, image_column=image_column, holdout=0).train
        for part in dataset.unused
        for uri in part.uris
    ]
    report = Report()
    for source in filter(None, (dataset.train, dataset.val, *unused)):
        with console.task("decoding") as on_progress:
            report.add(verify(source, on_progress))
    sizes = {f"{height}x{width}": count for (height, width), count in report.sizes.most_common()}
    if as_json:
        console.json_line(
            {
                "checked": report.checked,
                "broken": report.broken,
                "sizes": sizes,
                "modes": dict(report.modes),
                "left_out": report.left_out,
            }
        )
    else:
        rows = [
            ("images", f"{report.checked:,}"),
            ("broken", f"{len(report.broken):,}"),
            ("modes", ", ".join(f"{mode} {count:,}" for mode, count in report.modes.most_common())),
            ("sizes (h x w)", ", ".join(f"{size} {count:,}" for size, count in list(sizes.items())[:5])),
        ]
        console.table(f"Verified {data}", ["what", "found"], rows)
        for _, path, reason in report.broken:
            console.warn(f"{path}: {reason}")
        _tell_left_out(console, report.left_out)
    if report.broken:
        raise typer.Exit(1)


def _tell_left_out(console: "Console", left_out: Mapping[str, list[str]]) -> None:
    from ssl_ray.data.sources.base import counted

    for what, paths in left_out.items():
        console.warn(f"{counted('images', paths)} hold {what}")


@app.command()
def preview(
    recipe: Annotated[str, typer.Argument(help="Whose views to show, such as moco or recipe.json.")],
    data: Annotated[str, typer.Option(help="The images to show them on.")] = "fashion",
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("preview.png"),
    images: Annotated[int, typer.Option(min=1, help="Rows: an image each, and its views.")] = 8,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="path=value, such as views.min_scale=0.5.")
    ] = None,
    scale: Scale = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Which augmentations, and which images.")] = 0,
    image_column: ImageColumn = None,
) -> None:
    """Write a picture of images and the views a network would see."""
    import dataclasses

    import cv2

    from ssl_ray.console import Console
    from ssl_ray.data.pick import some_images
    from ssl_ray.data.preview import preview_grid
    from ssl_ray.data.source import open_dataset
    from ssl_ray.errors import UserError
    from ssl_ray.experiments import load_recipe
    from ssl_ray.recipe import overrides, parse_settings
    from ssl_ray.resolve import resolve

    console = Console()
    dataset = open_dataset(data, image_column=image_column, holdout=0)
    dataset.tell(console.print, console.warn, data)
    source = dataset.train
    chosen = load_recipe(recipe, scale=scale, info=source.info).recipe
    # A picture takes few images: none of the recipe's sizes is too large for it.
    plenty = dataclasses.replace(source.info, num_samples=max(source.info.num_samples, 1 << 24))
    resolved = resolve(overrides(chosen, parse_settings(settings or [])), plenty, held_out=False).recipe
    grid = preview_grid(resolved.views.build(), some_images(source, images, seed), seed=seed)
    try:
        written = cv2.imwrite(str(out), grid[..., ::-1])
    except cv2.error as error:
        raise UserError(f"out: {str(out)!r} cannot be written ({error.err}); give a .png file") from error
    if not written:
        raise UserError(f"out: {str(out)!r} cannot be written; give a .png file in a folder that exists")
    console.print(f"wrote {out}: {grid.shape[1]} x {grid.shape[0]} px")
