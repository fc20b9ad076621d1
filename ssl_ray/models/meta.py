"""Models without memory: shapes and names, no numbers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_INITIALISERS = ("normal_", "uniform_", "fill_", "zero_")


class _NoInitialisation(TorchFunctionMode):
    """Numbers of a tensor without memory are not drawn: on the meta device torch would import its compiler for it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _INITIALISERS:
            tensor = args[0] if args else (kwargs or {}).get("tensor")  # torch.nn.init names its argument
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built in here have tensors on the meta device: no memory, no time for their initialisation."""
    with torch.device("meta"), _NoInitialisation():
        yield
