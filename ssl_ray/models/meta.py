"""Models without memory: shapes and names, no numbers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_INITIALISERS = ("normal_", "uniform_", "fill_", "zero_", "normalize")
_FILLED = (torch.ones, torch.zeros, torch.rand, torch.randn)


class _NoInitialisation(TorchFunctionMode):
    """Numbers of a tensor without memory are not drawn: on the meta device torch would import its compiler for it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in _FILLED:
            return torch.empty(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _INITIALISERS:
            # torch.nn.init and torch.nn.functional name their argument.
            tensor = args[0] if args else (kwargs or {}).get("tensor", (kwargs or {}).get("input"))
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built in here have tensors on the meta device: no memory, no time for their initialisation."""
    with torch.device("meta"), _NoInitialisation():
        yield
