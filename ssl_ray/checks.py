"""Arguments against a signature: is the name known, does the value fit the annotation. pydantic judges plain values."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, PlainValidator, Strict, TypeAdapter, ValidationError

from ssl_ray.errors import UserError, nearest
from ssl_ray.ranges import OPTIMIZER

Target = Callable[..., Any]
REQUIRED = inspect.Parameter.empty


class Signature(NamedTuple):
    """What a class or function takes: argument -> default (or REQUIRED), its annotations, `**kwargs` or not."""

    defaults: dict[str, Any]
    annotations: dict[str, Any]
    open_ended: bool


@functools.cache
def signature(target: Target) -> Signature:
    """The keyword arguments of a class or function. Raises UserError where Python cannot tell."""
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError) as error:
        raise UserError(f"{target.__name__}: its arguments cannot be read ({error})") from error
    function = target.__init__ if inspect.isclass(target) else target
    try:
        annotations = get_type_hints(function, include_extras=True)
    except (
        NameError,
        TypeError,
        AttributeError,
    ):  # a name imported for type checkers only: names alone are checked
        annotations = {}
    if any(base.__module__.startswith("torch.optim") for base in getattr(target, "__mro__", ())):
        ranged = {n: r for n, r in OPTIMIZER.items() if get_origin(annotations.get(n)) is not Annotated}
        annotations |= {n: r for n, r in ranged.items() if n in annotations}
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    defaults = {p.name: p.default for p in parameters if p.kind in by_keyword}
    return Signature(defaults, annotations, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters))


def check(target: Target, name: str, value: Any) -> Any:
    """`value` as argument `name` of `target`: an int becomes a float and a list a tuple where the annotation asks.

    Raises UserError naming target, argument and value, and the nearest name or the type that fits.
    """
    known = signature(target)
    if name not in known.defaults and not known.open_ended:
        raise UserError(f"{target.__name__}: unknown argument {name!r}; {nearest(name, known.defaults)}")
    try:
        return _adapter(target, name).validate_python(value)
    except ValidationError as error:
        said = dict.fromkeys(re.sub("^(Input|Value error,) ", "", e["msg"]) for e in error.errors())
        raise UserError(f"{target.__name__}.{name} = {value!r}: {', or '.join(said)}") from error


def at(path: str, owner: str, error: UserError) -> UserError:
    """What `check` said of `owner`, said of the path where that stands: not "Head.width = 0" but "head.width = 0"."""
    said = str(error)
    own = said.startswith((f"{owner}.", f"{owner}: "))
    return UserError(f"{path}{said.removeprefix(owner)}".lstrip(".") if own else f"{path}: {said}")


@functools.cache
def _adapter(target: Target, name: str) -> TypeAdapter[Any]:
    annotation = _judged(signature(target).annotations.get(name, Any))
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))


def _judged(annotation: Any) -> Any:
    """The annotation as pydantic shall judge it: scalars strictly, and a Spec welcome where a class is asked for."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (bool, int, float, str):
        return Annotated[annotation, Strict()]
    if origin is Annotated:
        return Annotated[(_judged(arguments[0]), *annotation.__metadata__)]
    if origin in (Union, UnionType):
        return Union[tuple(map(_judged, arguments))]  # noqa: UP007 - built at run time
    if origin in (list, tuple, dict, Sequence, Mapping):
        return origin[tuple(a if a is ... else _judged(a) for a in arguments)]
    if origin is Literal or annotation in (None, type(None), Any, list, tuple, dict):
        return annotation
    if inspect.isclass(annotation):
        return Annotated[Any, PlainValidator(functools.partial(_stands_for, annotation))]
    return Any  # a type variable, a callable, ...: the call itself will judge


def _stands_for(wanted: type, value: Any) -> Any:
    """`value` if it is a `wanted`, or a Spec whose target is one or says that it returns one."""
    made = getattr(value, "target", None)
    if made is not None and not inspect.isclass(made):
        made = signature(made).annotations.get("return")
    try:
        fits = isinstance(value, wanted) or (
            issubclass(made, wanted) if inspect.isclass(made) else made is not None
        )
    except TypeError:  # a protocol that is not checked at run time
        fits = made is not None
    if not fits:
        raise ValueError(
            "should be a Spec" if wanted.__name__ == "Spec" else f"should be a Spec of {wanted.__name__}"
        )
    return value
