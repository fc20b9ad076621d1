"""Dotted paths into dataclasses, Specs, lists and dicts: read all of them, change one, parse a value from text."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from ssl_ray.checks import REQUIRED, at, signature
from ssl_ray.errors import MISTAKES, UserError, nearest
from ssl_ray.names import find
from ssl_ray.spec import Spec

Mistakes = type[Exception] | tuple[type[Exception], ...]
CHANGE = "`ssl-ray show` lists every value, --set changes one"
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_CALL = re.compile(r"[\w.]+\(.*\)", re.DOTALL)


def children(node: Any) -> dict[str, Any] | None:
    """What a path can name below `node`; None for a leaf. A Spec names defaults too, and arguments not given yet."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    if isinstance(node, Spec):
        return signature(node.target).defaults | node.kwargs
    if isinstance(node, dict):
        return node
    if isinstance(node, list | tuple):
        return {str(i): v for i, v in enumerate(node)}
    return None


def value_at(node: Any, path: str) -> Any:
    """What `path` names below `node`; None if there is no such thing, or nobody gave it a value."""
    for name in path.split("."):
        node = (children(node) or {}).get(name)
    return None if node is REQUIRED else node


def replace_at(node: Any, path: str, value: Any) -> Any:
    """A copy of `node` with `value` at `path`.

    Raises UserError with the whole path if there is nothing of that name (with the nearest match) or the value does
    not fit there.
    """
    return _replace(node, path.split("."), value, path)


def _replace(node: Any, names: list[str], value: Any, path: str) -> Any:
    if not names:
        return value
    name, rest = names[0], names[1:]
    known = children(node)
    open_ended = isinstance(node, dict) or (isinstance(node, Spec) and signature(node.target).open_ended)
    if known is None or (name not in known and not open_ended):
        where = path.removesuffix(".".join(names)).removesuffix(".")
        held = "" if known is not None else f" ({where} is {_text(node)})"
        raise UserError(f"{path}: there is no {name!r}{held}; {nearest(name, known or {})}")
    new = _replace(known.get(name), rest, value, path) if rest else value
    try:
        if isinstance(node, Spec):
            return node.replace(**{name: new})
        if isinstance(node, dict):
            return node | {name: new}
        if isinstance(node, list | tuple):
            return type(node)(new if str(i) == name else v for i, v in enumerate(node))
        return dataclasses.replace(node, **{name: new})
    except UserError as error:
        if str(error).startswith(path):
            raise
        owner = node.name if isinstance(node, Spec) else type(node).__name__
        said = at(path.removesuffix(".".join(names)).removesuffix("."), owner, error)
        raise said if str(said).startswith(path) else UserError(f"{path}: {error}") from error


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted path, value) below `node`, depth first; a Spec comes before its own arguments.

    Arguments that nobody gave appear with their default, or as REQUIRED.
    """
    below = children(node)
    if path and (isinstance(node, Spec) or below is None or isinstance(node, list | tuple)):
        yield path, node
    specs_inside = not isinstance(node, list | tuple) or any(isinstance(v, Spec) for v in node)
    for name, child in (below or {}).items() if specs_inside else ():
        yield from walk(child, f"{path}.{name}" if path else name)


def build_at(node: Any, path: str, told: Mistakes = MISTAKES) -> Any:
    """Builds the Specs of a value, inner ones first; what a call refuses is a UserError with the path of its Spec.

    told: what is taken for a mistake in the recipe; other exceptions pass.
    """
    if isinstance(node, list | tuple):
        return type(node)(build_at(v, f"{path}.{i}", told) for i, v in enumerate(node))
    if isinstance(node, dict):
        return {n: build_at(v, f"{path}.{n}", told) for n, v in node.items()}
    if not isinstance(node, Spec):
        return node
    if missing := node.missing():
        raise UserError(f"{path}: {node.name} needs {', '.join(missing)}")
    arguments = build_at(node.kwargs, path, told)
    try:
        return node.target(**arguments)
    except told as error:
        said = (
            error
            if isinstance(error, UserError)
            else UserError(f"{str(error) or type(error).__name__}; {CHANGE}")
        )
        # "num_heads: 5 does not divide ..." is about that argument.
        if str(said).partition(":")[0] in signature(node.target).defaults:
            raise UserError(f"{path}.{said}") from error
        raise at(path, node.name, said) from error


def parse_value(text: str) -> Any:
    """A value typed on a command line.

    Numbers, lists and dicts as in Python; `true`, `false` and `null`; `ResNet(depth=18)` as a Spec, nested if need
    be; whatever else is the text itself. Nothing is evaluated. Raises UserError for a call that cannot be read.
    """
    text = text.strip()
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, _NoValue):
        if _CALL.fullmatch(text):
            raise UserError(f"{text!r}: write a call as Name(argument=value, ...)") from None
        return text


def format_value(value: Any) -> str:
    """The text that `parse_value` reads as `value`. A Spec is only named: its arguments have paths of their own."""
    if isinstance(value, Spec):
        return value.name
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k!r}: {format_value(v)}' for k, v in value.items())}}}"
    if isinstance(value, str):
        return value if _reads_back(value) else repr(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


class _NoValue(Exception):
    """This piece of syntax is no value."""


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=func, args=[], keywords=keywords) if all(k.arg for k in keywords):
            return Spec(find(ast.unparse(func)), **{str(k.arg): _value(k.value) for k in keywords})
        case ast.Name(id=word):
            return _WORDS.get(word.lower(), word)
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items):
            return [_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item) for item in items)
        case ast.Dict(keys=keys, values=values) if all(isinstance(k, ast.Constant) for k in keys):
            return {
                k.value: _value(v) for k, v in zip(keys, values, strict=True) if isinstance(k, ast.Constant)
            }
    raise _NoValue


def _reads_back(text: str) -> bool:
    """True for a text that needs no quotes, even inside a list."""
    try:
        return bool(parse_value(text) == text) and not set(text) & set(",[]{}\"'")
    except UserError:
        return False


def _text(value: Any) -> str:
    return value.name if isinstance(value, Spec) else repr(value)
