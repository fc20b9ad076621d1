"""Imports point one way, and each framework has its place. Read from the source: imports inside functions count too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ssl_ray

PACKAGE = Path(ssl_ray.__file__).parent

# A unit is a file or folder of the package. It imports from itself and from the layers before its own.
LAYERS = [
    {"eager", "errors", "garbage", "job", "printable", "ranges", "redact", "__version__"},
    {"filesystems"},
    {"checks", "console", "distributed", "names"},
    {"spec"},  # a call written down as data
    {"paths"},
    {"recipe"},  # knows Specs, but no algorithm
    {"interop.weights"},  # reads files of tensors: an algorithm's `pretrained`
    {"models"},
    {"interop", "data", "tracking"},  # the rest of interop translates foreign names to modules of ours
    {"rules"},  # what follows from what in a recipe
    {"evaluation", "resolve", "experiments", "workers"},  # a recipe meets a data set
    {"training", "kubernetes"},
    {"tuning", "trained"},
    {"cli"},
]
# What can be used without the rest stays free of it: no Spec, recipe or console in here.
NEEDS = {
    "models": {"errors", "ranges", "distributed", "interop.weights"},
    "data": {"errors", "ranges", "redact", "filesystems"},
    "tracking": {"errors", "job", "redact", "__version__"},
    "evaluation": {"eager", "errors", "distributed", "models", "data"},
}
PLACES = {
    "ray": ("data/stream.py", "evaluation/features.py", "training/", "tuning/"),
    "mlflow": ("tracking/",),
    "typer": ("cli/",),
    "rich": ("console.py",),
    "jinja2": ("trained/report/",),
    "matplotlib": ("training/artifacts.py", "evaluation/", "tuning/plots.py"),
}
# Within training these know nothing of Ray: plain torch, plain files. The loop is among them, and all that it calls:
# its worker may be any `WorkerContext`.
PLAIN_IN_TRAINING = {
    f"{name}.py"
    for name in (
        *("loop", "context", "lookout", "watchdog", "reporter", "periodic_evaluation"),
        *("checkpoint_manager", "checkpoint", "gradients", "optim", "schedules", "lars", "step"),
        *("events", "folder", "trained", "tracked"),
    )
}


def modules() -> dict[str, Path]:
    return {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of everything imported at run time; `from ssl_ray import x` counts as `ssl_ray.x`."""

    def visit(node: ast.AST) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                yield node.lineno, f"ssl_ray.{alias.name}" if node.module == "ssl_ray" else str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_mlflow"):
            yield node.lineno, "mlflow"
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(ast.parse(path.read_text()))


def unit(module: str) -> str:
    """ssl_ray.data.sources.folder -> data"""
    parts = module.split(".")[1:]
    if parts[:2] == ["interop", "weights"]:
        return "interop.weights"
    return parts[0] if parts else "__version__"


def layer(name: str) -> int:
    found = [i for i, names in enumerate(LAYERS) if name in names]
    assert found, f"{name}: a new part of the package; give it its place in LAYERS"
    return found[0]


@pytest.mark.parametrize("file", modules())
def test_imports_point_one_way(file: str) -> None:
    me = unit("ssl_ray." + file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    if file == "__init__.py":
        me = "__version__"
    for line, module in imports(modules()[file]):
        if module.split(".")[0] != "ssl_ray" or unit(module) == me:
            continue
        where = f"ssl_ray/{file}:{line} imports {module}"
        assert layer(unit(module)) < layer(me), where
        assert unit(module) in NEEDS.get(me, {unit(module)}), where


@pytest.mark.parametrize("framework", PLACES)
def test_each_framework_has_its_place(framework: str) -> None:
    used_in = {
        file
        for file, path in modules().items()
        if any(module.split(".")[0] == framework for _, module in imports(path))
    }
    assert used_in
    assert {file for file in used_in if not file.startswith(PLACES[framework])} == set()
    if framework == "ray":
        in_training = {file.removeprefix("training/") for file in used_in if file.startswith("training/")}
        assert not in_training & PLAIN_IN_TRAINING
        assert {f"training/{name}" for name in PLAIN_IN_TRAINING} <= modules().keys()


def test_the_loop_s_own_modules_are_plain() -> None:
    found = {module for _, module in imports(modules()["training/loop.py"])}
    own = {
        f"{module.removeprefix('ssl_ray.training.')}.py" for module in found if "ssl_ray.training." in module
    }
    assert own
    assert own - PLAIN_IN_TRAINING == set()


def test_a_wrong_import_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "wrong.py"
    source.write_text(
        "def f():\n    import ray.data\n    from ssl_ray import training\n    import_mlflow()\n"
    )
    assert list(imports(source)) == [(2, "ray.data"), (3, "ssl_ray.training"), (4, "mlflow")]
    assert layer(unit("ssl_ray.training")) > layer("models")
