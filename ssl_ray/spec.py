"""Spec: a call written down as data - a class or function with its keyword arguments, checked, comparable, JSON."""

from collections.abc import Callable, Mapping
from typing import Any

from ssl_ray.checks import REQUIRED, Target, at, check, signature
from ssl_ray.errors import UserError
from ssl_ray.names import find_in_file, import_path, is_target


class Spec:
    """`Spec(ResNet, depth=50)` is the call `ResNet(depth=50)`, not made yet.

    Arguments are checked at once against the signature: their names, and their types (an int is a float; nothing else
    is converted, so "18" is no int). A value is plain - None, bool, number, str, or a list, tuple or dict of values -
    or another Spec, which stands for what it builds. Two Specs are equal if their targets and arguments are.

    Raises UserError for a target that is neither class nor function, an unknown argument or a value of the wrong type.
    """

    def __init__(self, target: Target, /, **kwargs: Any) -> None:
        if not is_target(target):
            raise UserError(f"Spec: {target!r} is neither a class nor a function")
        self.target = target
        self.kwargs: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name == "type" or not is_plain(value):
                raise UserError(f"{self.name}.{name} = {value!r}: a Spec holds plain values and other Specs")
            self.kwargs[name] = check(target, name, value)

    @property
    def name(self) -> str:
        """The target's bare name."""
        return self.target.__name__

    def defaults(self) -> dict[str, Any]:
        """What the signature fills in for arguments not given, as far as it is plain values."""
        known = signature(self.target).defaults
        return {n: v for n, v in known.items() if n not in self.kwargs and v is not REQUIRED and is_plain(v)}

    def missing(self) -> list[str]:
        """Required arguments that are not given."""
        return [
            n for n, v in signature(self.target).defaults.items() if v is REQUIRED and n not in self.kwargs
        ]

    def replace(self, **kwargs: Any) -> "Spec":
        """The same call with some arguments changed or added."""
        return Spec(self.target, **(self.kwargs | kwargs))

    def build(self, **late: Any) -> Any:
        """Makes the call, nested Specs first, also those in lists, tuples and dicts.

        late: arguments known only now, such as an optimiser's `params`; they go to this call and win. Raises
        UserError if a required argument is still missing.
        """
        if missing := [n for n in self.missing() if n not in late]:
            raise UserError(f"{self.name}: missing argument {', '.join(map(repr, missing))}")
        return self.target(**(_each(self.kwargs, Spec.build) | late))

    def to_json(self) -> dict[str, Any]:
        """{"type": "import.path:Name", argument: value, ...}, ready for `json.dumps`."""
        return {"type": import_path(self.target), **_each(self.kwargs, Spec.to_json, list)}

    @staticmethod
    def from_json(data: Mapping[str, Any], path: str = "") -> "Spec":
        """Reads what `to_json` wrote; "type" may also be a built-in's bare name. Imports the target, never calls it.

        path: where in its file this stands, for messages. Raises UserError; also for a target that `find_in_file`
        refuses, for the file may be a stranger's.
        """
        try:
            target = find_in_file(data["type"])
        except UserError as error:
            raise UserError(f"{path}: {error}" if path else str(error)) from error
        kwargs = {n: _read(v, f"{path}.{n}".lstrip(".")) for n, v in data.items() if n != "type"}
        try:
            return Spec(target, **kwargs)
        except UserError as error:
            raise at(path, target.__name__, error) if path else error from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spec):
            return NotImplemented
        mine, theirs = (_each(s.kwargs, lambda nested: nested, list) for s in (self, other))
        return self.target is other.target and bool(mine == theirs)

    __hash__ = None  # type: ignore[assignment]  # its arguments may be lists and dicts

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{n}={v!r}' for n, v in self.kwargs.items())})"


def is_plain(value: Any) -> bool:
    """True for what JSON can hold, with Specs as leaves and tuples as lists. "type" is the key that marks a Spec."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and k != "type" and is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str | Spec)


def _each(value: Any, change: Callable[[Spec], Any], sequence: type | None = None) -> Any:
    """`value` with every Spec in it changed; lists and tuples keep their kind unless `sequence` names one."""
    if isinstance(value, Spec):
        return change(value)
    if isinstance(value, list | tuple):
        return (sequence or type(value))(_each(v, change, sequence) for v in value)
    if isinstance(value, dict):
        return {k: _each(v, change, sequence) for k, v in value.items()}
    return value


def _read(value: Any, path: str) -> Any:
    """A JSON value, with every {"type": ...} in it read as a Spec."""
    if isinstance(value, list | tuple):
        return [_read(v, f"{path}.{i}") for i, v in enumerate(value)]
    if isinstance(value, dict):
        if "type" in value:
            return Spec.from_json(value, path)
        return {k: _read(v, f"{path}.{k}") for k, v in value.items()}
    return value
