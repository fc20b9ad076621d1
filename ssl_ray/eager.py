"""torch's optimisers without torch's compiler.

torch imports its compiler when the first optimiser is made and at each step, to tell it what not to compile: more than
a second, and some 175 MB, in every process that trains or fits anything. Where nothing is being compiled nobody needs
to be told. What the compiler is asked to compile, a model, has no part in this.
"""

import inspect
from typing import Any

import torch
from torch.optim import Optimizer


def spare_compiler() -> None:
    """To be called before the first optimiser is made. Methods that would be hidden from the compiler run as they are.

    As if torch had asked it already: that is where its wrapper keeps the answer.
    """
    for method in vars(Optimizer).values():
        hidden: Any = getattr(method, "__wrapped__", None)
        if inspect.isfunction(method) and inspect.isfunction(hidden) and _of_compiler(method):
            hidden.__dynamo_disable = hidden  # type: ignore[attr-defined]


def step(optimizer: Optimizer) -> None:
    """`optimizer.step()`, of torch's own optimisers what lies under the note to the compiler; no hooks, no closure."""
    kind = type(optimizer)
    if kind.__module__.startswith("torch.optim"):
        with torch.set_grad_enabled(optimizer.defaults.get("differentiable", False)):
            inspect.unwrap(kind.step)(optimizer)
    else:
        optimizer.step()


def _of_compiler(method: Any) -> bool:
    return bool(method.__code__.co_filename.endswith(("torch/_compile.py", "torch\\_compile.py")))
