"""Algorithms from MMSelfSup 1.x configs, and state dicts to and from its key names.

Each algorithm is a file here, and an entry of ALGORITHMS.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssl_ray.errors import UserError, nearest
from ssl_ray.interop.mmselfsup import mae, moco, simclr
from ssl_ray.interop.mmselfsup.config import Config, type_of
from ssl_ray.interop.mmselfsup.correspondence import Correspondence
from ssl_ray.interop.weights import LoadReport, load_matched, read_state_dict, renamed
from ssl_ray.models import BaseModel


def from_config(config: Config) -> BaseModel:
    """The model that an MMSelfSup config describes: the whole config, or its `model` dict.

    Raises UserError for an algorithm, module or setting without counterpart here.
    """
    if "type" not in config and "model" in config:
        config = config["model"]
    return _lookup(type_of(config)).build(config)


def load_state_dict(model: BaseModel, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Loads an MMSelfSup state dict (weights, teacher, queue) into a model of the same algorithm.

    Raises UserError if a tensor of the model is missing (BN's batch counters may be) or has another shape.
    """
    entry = _lookup(type(model).__name__)
    renames = entry.renames(model)
    left_out = {entry.counter, *entry.derived(model)}
    ours = {renamed(key, renames): value for key, value in state_dict.items() if key not in left_out}
    ours = {key: entry.layouts[key][0](v) if key in entry.layouts else v for key, v in ours.items()}
    own = model.state_dict()
    report = LoadReport(
        matched=tuple(k for k in ours if k in own),
        missing=tuple(k for k in own if k not in ours and not k.endswith("num_batches_tracked")),
        unexpected=tuple(k for k in ours if k not in own),
    )
    load_matched(model, ours, report)
    if entry.counter is not None and state_dict.get(entry.counter, torch.tensor(1)).item() == 0:
        model.teacher.update(model.backbone, model.neck, momentum=0.0)  # type: ignore[operator, union-attr]
    return report


def to_state_dict(model: BaseModel) -> dict[str, Tensor]:
    """The model's state under MMSelfSup's names and layouts, the inverse of `load_state_dict`."""
    entry = _lookup(type(model).__name__)
    theirs: dict[str, Tensor] = {} if entry.counter is None else {entry.counter: torch.tensor(1)}
    theirs |= entry.derived(model)
    for key, value in model.state_dict().items():
        theirs[their_key(model, key)] = entry.layouts[key][1](value) if key in entry.layouts else value
    return theirs


def load_checkpoint(model: BaseModel, path: str | Path) -> LoadReport:
    """Loads an MMSelfSup checkpoint file, {"meta", "state_dict"} or bare, as `load_state_dict` does."""
    return load_state_dict(model, read_state_dict(path))


def their_key(model: BaseModel, key: str) -> str:
    """MMSelfSup's name of the model's parameter or buffer `key`."""
    for rename in reversed(_lookup(type(model).__name__).renames(model)):
        key = rename.to_theirs(key)
    return key


def _lookup(name: str) -> Correspondence:
    if name not in ALGORITHMS:
        raise UserError(f"algorithm {name!r} has no MMSelfSup counterpart here; {nearest(name, ALGORITHMS)}")
    return ALGORITHMS[name]


ALGORITHMS: dict[str, Correspondence] = {
    "MAE": mae.CORRESPONDENCE,
    "MoCo": moco.CORRESPONDENCE,
    "SimCLR": simclr.CORRESPONDENCE,
}
