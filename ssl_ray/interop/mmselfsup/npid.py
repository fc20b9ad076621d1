"""NPID of MMSelfSup."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ssl_ray.interop.mmselfsup.config import Config, arguments_of, build_module, build_parts
from ssl_ray.interop.mmselfsup.correspondence import Correspondence
from ssl_ray.interop.mmselfsup.modules import COMMON
from ssl_ray.interop.weights.names import Rename
from ssl_ray.models import NPID, BaseModel, SimpleMemory


def _simple_memory(config: Config) -> SimpleMemory:
    names = {"length": "num_samples", "feat_dim": "dim", "momentum": "momentum"}
    arguments = arguments_of(config, names)
    # Theirs is the weight of the new vector.
    return SimpleMemory(**{**arguments, "momentum": 1 - arguments.get("momentum", 0.5)})


def _npid(config: Config) -> NPID:
    names = {"neg_num": "num_negatives", "ensure_neg": "ensure_neg"}
    memory = build_module(config["memory_bank"], {"SimpleMemory": _simple_memory})
    assert isinstance(memory, SimpleMemory)
    return NPID(**build_parts(config, COMMON), memory=memory, **arguments_of(config, names))


def _alias_tables(model: BaseModel) -> Mapping[str, Tensor]:
    """Tables of the alias method for drawing negatives; the draw is uniform, so they say nothing."""
    assert isinstance(model, NPID)
    images = len(model.memory.rows)
    tables = {"prob": torch.ones(images), "alias": torch.zeros(images, dtype=torch.long)}
    return {f"memory_bank.multinomial.{name}": table for name, table in tables.items()}


CORRESPONDENCE = Correspondence(
    _npid, lambda model: (Rename("memory_bank.feature_bank", "memory.rows"),), derived=_alias_tables
)
