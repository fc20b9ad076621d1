"""Search spaces as plain data: an experiment file's SEARCH maps dotted paths of its recipe to these."""

import ast
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ssl_ray.errors import UserError, nearest
from ssl_ray.paths import format_value, parse_value
from ssl_ray.spec import Spec


@dataclass(frozen=True)
class Uniform:
    """Any number in [low, high], all equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UserError(f"{self}: low should be less than high")


@dataclass(frozen=True)
class LogUniform:
    """Any number in [low, high], 0 < low, all orders of magnitude equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise UserError(f"{self}: low should be greater than 0 and less than high")


@dataclass(frozen=True)
class Quantized:
    """A multiple of `step` in [low, high], all equally likely."""

    low: float
    high: float
    step: float

    def __post_init__(self) -> None:
        if not (self.low < self.high and 0 < self.step <= self.high - self.low):
            raise UserError(
                f"{self}: low should be less than high, and step greater than 0 and at most the width"
            )


@dataclass(frozen=True)
class Integer:
    """A whole number from low to high, both included, all equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not (isinstance(self.low, int) and isinstance(self.high, int) and self.low < self.high):
            raise UserError(f"{self}: low and high should be whole numbers, low less than high")


@dataclass(frozen=True)
class Choice:
    """One of several values, all equally likely."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise UserError(f"{self}: give at least one value")


Space = Uniform | LogUniform | Quantized | Integer | Choice
Search = dict[str, Space]
"""Dotted path -> space."""

_KINDS: dict[str, type] = {
    "uniform": Uniform,
    "loguniform": LogUniform,
    "quniform": Quantized,
    "randint": Integer,
    "choice": Choice,
}


def parse_searches(texts: Iterable[str]) -> Search:
    """`["optimization.base_lr=loguniform(1e-4, 1e-1)", ...]`, as typed after `--search`. Raises UserError."""
    search: Search = {}
    for text in texts:
        path, equals, space = text.partition("=")
        if not equals or not path.strip():
            raise UserError(
                f"--search {text!r}: write path=space, such as optimization.base_lr=loguniform(1e-4, 1e-1)"
            )
        search[path.strip()] = parse_space(space)
    return search


def parse_space(text: str) -> Space:
    """A space as typed: `loguniform(1e-4, 1e-1)`, `choice(0.9, 0.99)`, ... `randint` includes both ends.

    The values of a choice are typed as after `--set`. Raises UserError.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        node = None
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords):
        raise UserError(f"--search: {text.strip()!r} is no space; write one of {_forms()}")
    if (name := node.func.id) not in _KINDS:
        raise UserError(f"--search: {name!r} is no space; {nearest(name, _KINDS)}")
    kind = _KINDS[name]
    values = [parse_value(ast.unparse(argument)) for argument in node.args]
    if kind is Choice:
        return Choice(tuple(values))
    wanted = len(dataclasses.fields(kind))
    if len(values) != wanted or not all(type(v) in (int, float) for v in values):
        raise UserError(f"--search: {text.strip()!r} should have {wanted} numbers; the forms are {_forms()}")
    space: Space = kind(*values)
    return space


def format_space(space: Space) -> str:
    """The text that `parse_space` reads as `space`; a Spec among the values of a choice is only named."""
    name = next(name for name, kind in _KINDS.items() if isinstance(space, kind))
    values = space.values if isinstance(space, Choice) else dataclasses.astuple(space)
    texts = [repr(v) if isinstance(v, str) and not v.isidentifier() else format_value(v) for v in values]
    return f"{name}({', '.join(texts)})"


def ends(space: Space) -> tuple[Any, ...]:
    """Values that stand for the rest when a space is checked: both ends of a range, all of a choice."""
    return space.values if isinstance(space, Choice) else (space.low, space.high)


def to_json(search: Search) -> dict[str, Any]:
    """A search as JSON can hold it, for `from_json`."""

    def value(item: Any) -> Any:
        return item.to_json() if isinstance(item, Spec) else item

    return {
        path: {"space": type(space).__name__}
        | {
            f.name: [value(v) for v in getattr(space, f.name)]
            if f.name == "values"
            else getattr(space, f.name)
            for f in dataclasses.fields(space)
        }
        for path, space in search.items()
    }


def from_json(data: Mapping[str, Mapping[str, Any]]) -> Search:
    """What `to_json` wrote."""

    def value(item: Any) -> Any:
        return Spec.from_json(item) if isinstance(item, Mapping) and "type" in item else item

    kinds = {kind.__name__: kind for kind in _KINDS.values()}
    return {
        path: kinds[entry["space"]](
            **{
                name: tuple(map(value, given)) if name == "values" else given
                for name, given in entry.items()
                if name != "space"
            }
        )
        for path, entry in data.items()
    }


def _forms() -> str:
    return "loguniform(low, high), uniform(low, high), quniform(low, high, step), randint(low, high), choice(...)"
