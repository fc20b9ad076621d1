"""The backbone that a user names: a run, one of its checkpoints, or a file that `import` or `export` wrote."""

import json
from pathlib import Path

from torch import nn

from ssl_ray.errors import UserError
from ssl_ray.interop.backbone_file import TrainedBackbone, read_backbone
from ssl_ray.models.base import BaseModel
from ssl_ray.models.preprocessing import DataPreprocessor
from ssl_ray.recipe import Recipe
from ssl_ray.training import checkpoint
from ssl_ray.training.folder import NoRun, RunFolder


def load_trained(source: str, storage: str) -> TrainedBackbone:
    """The backbone in `source`.

    source: a .safetensors file; a checkpoint (folder or file, local); or a run (folder, URI, or name in `storage`), of
    which the newest checkpoint is taken. Raises UserError if it is none of these.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".safetensors":
        return read_backbone(path)
    if path.name == checkpoint.FILE and path.is_file():
        path = path.parent
    if (path / checkpoint.FILE).is_file():
        return _from_checkpoint(path, str(path))
    if path.is_file():
        raise UserError(f"{source}: no file of ours; `ssl-ray import {source}` makes one of it")
    try:
        folder = RunFolder.find(source, storage)
    except NoRun as error:
        raise UserError(
            f"{source!r} is no run (a folder, or a name in {storage!r}), no checkpoint and no .safetensors file"
        ) from error
    newest = folder.latest_checkpoint()
    if newest is None:
        raise UserError(f"{source}: the run has no checkpoint yet; let it reach its first one")
    with checkpoint.local_copy(newest) as directory:
        return _from_checkpoint(directory, newest)


def load_algorithm(recipe: Recipe, checkpoint_uri: str) -> tuple[BaseModel, int]:
    """A run's algorithm, heads and memories with it, as the checkpoint has it; and how many steps it was trained."""
    algorithm: BaseModel = recipe.untrained.build()
    with checkpoint.local_copy(checkpoint_uri) as directory:
        state = checkpoint.load(directory)
    algorithm.load_state_dict(state["algorithm"])
    return algorithm, state["next_step"]


def _from_checkpoint(directory: Path, origin: str) -> TrainedBackbone:
    recipe = Recipe.from_json(json.loads((directory / checkpoint.RECIPE).read_text()))
    state = checkpoint.load(directory)
    architecture = recipe.algorithm.kwargs["backbone"]
    module: nn.Module = architecture.build()
    prefix = "backbone."
    module.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state["algorithm"].items() if k.startswith(prefix)}
    )
    given = recipe.algorithm.kwargs.get("data_preprocessor")
    preprocessor: DataPreprocessor = given.build() if given else DataPreprocessor()
    # It keeps 1 / (255 std) and mean / std.
    std = 1 / (255 * preprocessor.scale.flatten().double())
    mean = preprocessor.shift.flatten().double() * std
    return TrainedBackbone(
        architecture,
        module.eval(),
        f"{recipe.name}, step {state['next_step']} of {origin}",
        recipe.views.build().eval_size,
        tuple(mean.tolist()),
        tuple(std.tolist()),
        step=state["next_step"],
    )
