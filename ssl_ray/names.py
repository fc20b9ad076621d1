"""From a name to a class or function and back: import paths, and bare names for what the package itself defines."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from ssl_ray.errors import UserError, nearest

Target = Callable[..., Any]

# Where a bare name is looked up: every public class and function defined in these.
_PACKAGES = tuple(
    f"ssl_ray.models.{p}"
    for p in ("backbones", "necks", "heads", "losses", "memories", "tokenizers", "clustering", "algorithms")
)
_MODULES = (
    "ssl_ray.models.classifier",
    "ssl_ray.models.preprocessing",
    "ssl_ray.data.views",
    "ssl_ray.training.lars",
)
_ELSEWHERE = ("torch.optim:SGD", "torch.optim:AdamW")


def is_target(value: object) -> bool:
    """True for what a name may lead to: a class or a function."""
    return inspect.isclass(value) or inspect.isfunction(value)


def find(name: str) -> Target:
    """The class or function called `import.path:Name`, `import.path.Name` or, for built-ins, `Name`.

    Imports its module and runs nothing else. Raises UserError if there is no such thing.
    """
    if ":" not in name and "." not in name:
        if name not in builtin():
            raise UserError(
                f"no built-in is called {name!r}; {nearest(name, builtin())} (your own: 'module:Name')"
            )
        return builtin()[name]
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot import {name!r}: {error}") from error
    if not is_target(found):
        raise UserError(f"{name!r} is neither a class nor a function but a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


@functools.cache
def builtin() -> dict[str, Target]:
    """Bare name -> class or function, for all that the package's own modules define; no list kept by hand."""
    modules = list(_MODULES)
    for package in _PACKAGES:
        modules += [
            f"{package}.{m.name}" for m in pkgutil.iter_modules(importlib.import_module(package).__path__)
        ]
    found = {path.partition(":")[2]: find(path) for path in _ELSEWHERE}
    for module in modules:
        for name, value in vars(importlib.import_module(module)).items():
            if is_target(value) and value.__module__ == module and not name.startswith("_"):
                assert found.setdefault(name, value) is value, f"two built-ins are called {name}"
    return found


def import_path(target: Target) -> str:
    """`import.path:Name` of a class or function. Raises UserError if it is defined inside a function."""
    if "<" in target.__qualname__:
        raise UserError(f"{target.__qualname__} has no import path; define it at the top level of a module")
    return f"{target.__module__}:{target.__qualname__}"
