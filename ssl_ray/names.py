"""From a name to a class or function and back: import paths, and bare names for what the package itself defines.

A name that a person types is found wherever it is (`find`). One that a file holds - a recipe.json, a run's folder, the
description of a backbone - may come from a stranger and is held to a rule (`find_in_file`).
"""

import functools
import importlib
import inspect
import os
import pkgutil
import sys
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
    module, attribute = _parts(name)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever that module does when it is imported
        raise UserError(f"cannot import {name!r}: {error}") from error
    if not is_target(found):
        raise UserError(f"{name!r} is neither a class nor a function but a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def find_in_file(name: object) -> Target:
    """`find` for a name that a file holds, which nobody has judged. Calls nothing.

    Python's own library is not even imported (`os:system`, `subprocess:run`, `builtins:exec`), nor what runs when it is
    imported (`__main__`). Elsewhere Python's path is as the user has set it: no folder is added for the file's sake,
    not the one it lies in. What is found there must be of a kind that a recipe is made of: a torch module or optimiser,
    a built-in, a function that says it returns a ViewPipeline, or anything that the user's own code defines, which is
    code outside of Python's folders of installed packages. So `torch:load` and `shutil.rmtree` behind an alias are
    refused. Raises UserError.
    """
    if not isinstance(name, str):
        raise UserError(f"{name!r} is no name of a class or function")
    if ":" in name or "." in name:
        module, _ = _parts(name)
        if module.partition(".")[0] in sys.stdlib_module_names or "__main__" in module.split("."):
            raise UserError(_refused(name))
    target = find(name)
    if not (_is_part(target) or target in builtin().values() or _is_own(target)):
        raise UserError(_refused(name))
    return target


def _parts(name: str) -> tuple[str, str]:
    """Module and attribute."""
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    return module, attribute


def _refused(name: str) -> str:
    return (
        f"{name!r} is nothing that a recipe is made of (a torch module or optimiser, a function that returns a "
        "ViewPipeline, or your own code); it is not called"
    )


def _is_part(target: Target) -> bool:
    """A torch module or optimiser, or a function that says it makes views."""
    from torch import nn, optim

    if inspect.isclass(target):
        return issubclass(target, nn.Module | optim.Optimizer)
    made = getattr(target, "__annotations__", {}).get("return")
    return getattr(made, "__name__", made) == "ViewPipeline"


def _is_own(target: Target) -> bool:
    """Whether it is defined in code of the user's: neither Python's, nor an installed package's, nor ours."""
    package = target.__module__.partition(".")[0]
    if package in sys.stdlib_module_names or package == __package__:
        return False
    file = getattr(sys.modules.get(target.__module__), "__file__", None)
    return file is not None and not {"site-packages", "dist-packages"} & set(
        os.path.realpath(file).split(os.sep)
    )


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
