"""Algorithms from MMSelfSup 1.x configs, and state dicts to and from its key names.

Each algorithm is a file here, and an entry of ALGORITHMS.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssl_ray.errors import UserError, nearest
from ssl_ray.interop.mmselfsup import (
    barlow_twins,
    byol,
    cae,
    deepcluster,
    densecl,
    mae,
    moco,
    moco_v3,
    npid,
    odc,
    relative_loc,
    rotation_pred,
    simclr,
    simmim,
    simsiam,
    swav,
)
from ssl_ray.interop.mmselfsup.config import Config, type_of
from ssl_ray.interop.mmselfsup.correspondence import Correspondence
from ssl_ray.interop.weights import LoadReport, load_matched, read_state_dict
from ssl_ray.interop.weights.names import renamed
from ssl_ray.models import BaseModel


def from_config(config: Config) -> BaseModel:
    """The model that an MMSelfSup config describes: the whole config, or its `model` dict.

    Raises UserError for an algorithm, module or setting without counterpart here.
    """
    if "type" not in config and "model" in config:
        # As their runner does: the preprocessor beside the model is for a model that has none.
        around = {"data_preprocessor": config.get("data_preprocessor")}
        config = {**around, **config["model"]}
    return _lookup(type_of(config)).build(config)


def load_state_dict(model: BaseModel, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Loads an MMSelfSup state dict (weights, teacher, queue) into a model of the same algorithm.

    Raises UserError if a tensor of the model is missing (BN's batch counters may be) or has another shape, or if one
    that ours computes (a second copy of a norm) holds something else.
    """
    entry = _lookup(type(model).__name__)
    renames = entry.renames(model)
    theirs = ({} if entry.counter is None else {entry.counter: torch.tensor(1)}) | dict(state_dict)
    ours = {renamed(k, renames): value for k, value in theirs.items() if k not in entry.derived(model)}
    ours = {key: entry.layouts[key][0](v) if key in entry.layouts else v for key, v in ours.items()}
    own = model.state_dict()
    report = LoadReport(
        matched=tuple(k for k in ours if k in own),
        missing=tuple(
            k
            for k in own
            if k not in ours and k not in entry.elsewhere and not k.endswith("num_batches_tracked")
        ),
        unexpected=tuple(k for k in ours if k not in own and k != entry.counter),
    )
    load_matched(model, ours, report)
    for key, value in entry.derived(model).items():
        if key in theirs and not torch.allclose(theirs[key].double(), value.double(), rtol=1e-5, atol=1e-6):
            raise UserError(
                f"weights: {key} holds other numbers than {type(model).__name__} has there, and cannot"
            )
    if entry.counter is not None and theirs[entry.counter].item() == 0:
        model.teacher.update(model.backbone, model.neck, momentum=0.0)  # type: ignore[operator, union-attr]
    return report


def to_state_dict(model: BaseModel) -> dict[str, Tensor]:
    """The model's state under MMSelfSup's names and layouts, the inverse of `load_state_dict`."""
    entry = _lookup(type(model).__name__)
    theirs: dict[str, Tensor] = {} if entry.counter is None else {entry.counter: torch.tensor(1)}
    theirs |= entry.derived(model)
    for key, value in model.state_dict().items():
        if key in entry.elsewhere:
            continue
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
    "BYOL": byol.CORRESPONDENCE,
    "BarlowTwins": barlow_twins.CORRESPONDENCE,
    "CAE": cae.CORRESPONDENCE,
    "DeepCluster": deepcluster.CORRESPONDENCE,
    "DenseCL": densecl.CORRESPONDENCE,
    "MAE": mae.CORRESPONDENCE,
    "MoCo": moco.CORRESPONDENCE,
    "MoCoV3": moco_v3.CORRESPONDENCE,
    "NPID": npid.CORRESPONDENCE,
    "ODC": odc.CORRESPONDENCE,
    "RelativeLoc": relative_loc.CORRESPONDENCE,
    "RotationPred": rotation_pred.CORRESPONDENCE,
    "SimCLR": simclr.CORRESPONDENCE,
    "SimMIM": simmim.CORRESPONDENCE,
    "SimSiam": simsiam.CORRESPONDENCE,
    "SwAV": swav.CORRESPONDENCE,
}
