"""`ssl-ray list`: the built-in algorithms and what they are made of."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ssl_ray.recipe import Recipe

COLUMNS = ("name", "paper", "backbone", "neck", "head", "loss", "memory", "published result")


def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the built-in algorithms: paper, composition, published result."""
    from ssl_ray import experiments
    from ssl_ray.console import Console

    rows = [_row(name, experiments.load(name).PAPER) for name in experiments.names()]
    if as_json:
        Console().json_line([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    else:
        Console().table("Algorithms", COLUMNS, rows)


def _row(name: str, recipe: "Recipe") -> tuple[str | None, ...]:
    paper = recipe.paper
    parts = recipe.algorithm.kwargs
    head = parts.get("head")
    return (
        name,
        f"arXiv {paper.arxiv} ({paper.year})",
        _name(parts.get("backbone")),
        _name(parts.get("neck")),
        _name(head),
        _name(head.kwargs.get("loss")) if head else None,
        _memory(recipe),
        paper.result,
    )


def _name(part: Any) -> str | None:
    return None if part is None else str(part.name)


def _memory(recipe: "Recipe") -> str | None:
    """The type of the algorithm's attribute `memory`, as its class declares it, or the length of its queue."""
    from typing import get_type_hints

    declared = get_type_hints(recipe.algorithm.target).get("memory")
    if declared is not None:
        return str(declared.__name__)
    arguments = recipe.algorithm.defaults() | recipe.algorithm.kwargs
    size = arguments.get("queue_size")
    return f"queue of {size}" if size else None
