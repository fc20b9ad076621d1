"""Experiment files: Python modules that hold recipes (PAPER, SMALL, variants) and a search space (SEARCH).

The built-in ones are `experiments/*.py` of a checkout, packaged as `ssl_ray/_experiments`; anyone's own file is
named by its path.
"""

import functools
import importlib
import importlib.util
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from ssl_ray.errors import UserError, nearest
from ssl_ray.recipe import Recipe

if TYPE_CHECKING:
    from ssl_ray.data.source import DatasetInfo

SCALES = ("auto", "paper", "small")

SMALL_IMAGE = 64
"""Images whose longer side is at most this many pixels get SMALL."""


class Chosen(NamedTuple):
    """A recipe, and in words which one it is and why."""

    recipe: Recipe
    origin: str


def folder() -> Path:
    """Where the built-in experiment files are: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    packaged = package / "_experiments"
    return packaged if packaged.is_dir() else package.parent / "experiments"


def names() -> list[str]:
    """The built-in experiments."""
    return sorted(path.stem for path in folder().glob("*.py") if not path.stem.startswith("_"))


def load(source: str) -> ModuleType:
    """The experiment file of a built-in name or a path ending in .py. Raises UserError if there is none."""
    if source.endswith(".py"):
        return _load_file(Path(source))
    if source not in names():
        raise UserError(
            f"no experiment is called {source!r}; {nearest(source, names())} (your own: path/to/file.py)"
        )
    return _load_built_in(source)


def recipes_of(source: str) -> dict[str, Recipe]:
    """Attribute -> recipe of an experiment file (see `load`), in the order in which it defines them."""
    return {name: value for name, value in vars(load(source)).items() if isinstance(value, Recipe)}


def load_recipe(source: str, scale: str = "auto", info: "DatasetInfo | None" = None) -> Chosen:
    """The recipe that a command line names.

    source: a built-in ("moco"), a file ("mine.py"), an attribute of either ("moco:PAPER_V1", "mine.py:TINY"), or a
    recipe.json. scale: "paper", "small", or "auto", which takes PAPER when the images of `info` are larger than 64 px
    and SMALL otherwise; a file with one recipe needs no choice. Raises UserError.
    """
    if scale not in SCALES:
        raise UserError(f"scale: {scale!r}; {nearest(scale, SCALES)}")
    if source.endswith(".json"):
        if scale != "auto":
            raise UserError(f"scale: {source} holds one recipe; leave --scale {scale} out")
        return Chosen(_read_json(Path(source)), source)
    file, _, attribute = source.partition(":")
    recipes = recipes_of(file)
    why = ""
    if attribute and scale != "auto":
        raise UserError(f"scale: {source} names its recipe; leave --scale {scale} out")
    if not attribute and scale != "auto":
        attribute = scale.upper()
    elif not attribute and len(recipes) == 1:
        (attribute,) = recipes
    elif not attribute:
        attribute, why = _fitting(info)
    if attribute not in recipes:
        raise UserError(f"{file} has no recipe {attribute!r}; {nearest(attribute, recipes)}")
    return Chosen(recipes[attribute], f"{attribute} of {file}{why}")


def _fitting(info: "DatasetInfo | None") -> tuple[str, str]:
    """PAPER or SMALL, and why."""
    if info is None:
        raise UserError("scale: say paper or small; without a data set there is nothing to choose by")
    height, width = info.image_size
    large = max(height, width) > SMALL_IMAGE
    than = "larger than" if large else "at most"
    why = f": the images, {height} x {width} px, are {than} {SMALL_IMAGE} px; --scale decides otherwise"
    return ("PAPER" if large else "SMALL"), why


@functools.cache
def _load_built_in(name: str) -> ModuleType:
    full_name = f"ssl_ray._experiments.{name}"
    spec = importlib.util.spec_from_file_location(full_name, folder() / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[full_name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load_file(path: Path) -> ModuleType:
    """Imports a user's file by its bare name, so that the classes it defines have an import path."""
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        module = importlib.import_module(path.stem)
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from error
    except Exception as error:  # whatever the user's own code does
        line = next(
            (f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)), "?"
        )
        raise UserError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    if module.__file__ is None or Path(module.__file__).resolve() != path:
        raise UserError(f"{path}: Python already knows another module {path.stem!r}; rename the file")
    return module


def _read_json(path: Path) -> Recipe:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no JSON ({error})") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: no recipe, but a {type(data).__name__}")
    try:
        return Recipe.from_json(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
