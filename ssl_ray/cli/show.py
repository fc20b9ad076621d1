"""`ssl-ray show`: what a run would do, every value of it, before it starts."""

from typing import Annotated

import typer

from ssl_ray.cli.options import Recipe, Scale, Settings


def show(
    recipe: Recipe,
    data: Annotated[str, typer.Option(help="The data set to fit the recipe to.")] = "fashion",
    settings: Settings = None,
    scale: Scale = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print it as a recipe.json, ready for `pretrain`.")
    ] = False,
) -> None:
    """Show a recipe as it would run on a data set: a line `path = value` for everything that --set can change."""
    import json

    from ssl_ray.checks import REQUIRED
    from ssl_ray.console import Console
    from ssl_ray.data.source import open_dataset
    from ssl_ray.experiments import load_recipe
    from ssl_ray.paths import format_value, walk
    from ssl_ray.printable import printable
    from ssl_ray.recipe import overrides, parse_settings
    from ssl_ray.resolve import resolve

    dataset = open_dataset(data)
    info = dataset.train.info
    chosen = load_recipe(recipe, scale=scale, info=info)
    changed = overrides(chosen.recipe, parse_settings(settings or []))
    resolved = resolve(changed, info, held_out=dataset.val is not None)
    console = Console("quiet" if as_json else "normal")  # warnings are for both
    if not as_json:
        height, width = info.image_size
        print(f"# {printable(chosen.origin)}")
        print(f"# data: {printable(info.name)}, {info.num_samples} images of {height} x {width} px")
    dataset.tell(lambda text: console.print(f"# {text}"), console.warn, data)
    if as_json:
        print(json.dumps(resolved.recipe.to_json(), indent=2))
        return
    for path, value in walk(resolved.recipe):
        # Left to the run (the optimiser's parameters and rate): nothing to show.
        if value is REQUIRED or path == "optimization.optimizer.lr":
            continue
        origin = resolved.origins.get(path)
        print(printable(f"{path} = {format_value(value)}" + (f"  # {origin}" if origin else "")))
