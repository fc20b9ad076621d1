"""What ties one of our algorithms to its counterpart in MMSelfSup 1.x."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssl_ray.interop.mmselfsup.config import Config
from ssl_ray.interop.weights.names import Rename
from ssl_ray.models.base import BaseModel

Layout = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""(theirs to ours, ours to theirs)."""

QUEUE_LAYOUT: Layout = (torch.t, torch.t)
POINTER_LAYOUT: Layout = (lambda p: p.reshape(()), lambda p: p.reshape(1))


@dataclass(frozen=True)
class Correspondence:
    """How an algorithm's config reads, which keys are named otherwise, which tensors are laid out otherwise.

    build: model from its config. renames: differing keys of a model; order matters, see `Rename`.
    layouts: by our key. counter: their count of teacher updates, where 0 means that the teacher is still a copy; it is
    loaded where `renames` names a buffer of ours, else dropped.
    derived: tensors of theirs that follow from others and have no counterpart, by their key.
    elsewhere: our keys of state that they keep outside the state dict: neither asked of one nor written into one.
    """

    build: Callable[[Config], BaseModel]
    renames: Callable[[BaseModel], tuple[Rename, ...]] = lambda model: ()
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    counter: str | None = None
    derived: Callable[[BaseModel], Mapping[str, Tensor]] = lambda model: {}
    elsewhere: frozenset[str] = frozenset()


def under(prefix: str, renames: tuple[Rename, ...]) -> tuple[Rename, ...]:
    """The same changes of name for a module that sits at `prefix`."""
    return tuple(
        r if r.theirs.startswith(".") else Rename(prefix + r.theirs, prefix + r.ours) for r in renames
    )


def teacher_at(theirs: str) -> tuple[Rename, ...]:
    """An averaged `Sequential(backbone, neck)` of theirs is our teacher."""
    return (
        Rename(f"{theirs}.module.0.", "teacher.backbone."),
        Rename(f"{theirs}.module.1.", "teacher.neck."),
    )
