"""`ssl-ray list`: the built-in algorithms and what they are made of."""

from typing import TYPE_CHECKING, Any

from ssl_ray.cli.options import Json

if TYPE_CHECKING:
    from ssl_ray.recipe import Recipe

COLUMNS = ("name", "paper", "backbone", "neck", "head", "loss", "memory", "published result")


def list_recipes(as_json: Json = False) -> None:
    """List the algorithms and their published variants, by the name that pretrain takes: paper, composition, result."""
    from ssl_ray import experiments
    from ssl_ray.console import Console

    rows = [
        _row(name if attribute == "PAPER" else f"{name}:{attribute}", recipe)
        for name in experiments.names()
        for attribute, recipe in experiments.recipes_of(name).items()
        if attribute.startswith("PAPER")
    ]
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
        _loss(head),
        _memory(recipe),
        paper.result,
    )


def _name(part: Any) -> str | None:
    return None if part is None else str(part.name)


def _loss(head: Any) -> str | None:
    """The head's loss: the one it is given, else the one it makes itself."""
    from ssl_ray.models.meta import without_memory

    if head is None:
        return None
    if (given := head.kwargs.get("loss")) is not None:
        return _name(given)
    with without_memory():
        return type(head.build().loss).__name__


def _memory(recipe: "Recipe") -> str | None:
    """The memory that the algorithm is given, or the length of its queue."""
    if (memory := recipe.algorithm.kwargs.get("memory")) is not None:
        return _name(memory)
    arguments = recipe.algorithm.defaults() | recipe.algorithm.kwargs
    size = arguments.get("queue_size")
    return f"queue of {size}" if size else None
