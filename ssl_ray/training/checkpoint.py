"""What a checkpoint holds, and how a run is restored from it.

Everything that the next step depends on and that is not a pure function of the step: weights, teachers, queues and
banks (all in the algorithm's state dict), the optimiser's state, and the number of the next step. Random numbers need
no place here: they are drawn from (seed, step, rank) and (seed, epoch, index, view).
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_ray.errors import UserError
from ssl_ray.interop.weights import load_plain
from ssl_ray.recipe import Recipe

FILE = "checkpoint.pt"
RECIPE = "recipe.json"


def save(
    directory: str | Path,
    *,
    algorithm: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    next_step: int,
    evaluations: list[dict[str, float]],
) -> None:
    """Writes a checkpoint into an existing directory."""
    state = {
        "algorithm": algorithm.state_dict(),
        "optimizer": optimizer.state_dict(),
        "next_step": next_step,
        "evaluations": evaluations,
    }
    torch.save(state, Path(directory) / FILE)
    (Path(directory) / RECIPE).write_text(json.dumps(recipe.to_json(), indent=2))


def load(directory: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads what `save` wrote; only tensors and plain values are accepted. Raises UserError for anything else."""
    path = Path(directory) / FILE
    if not path.exists():
        raise UserError(f"checkpoint: {path} does not exist; give a folder that holds {FILE}")
    state = load_plain(path, device)
    if not isinstance(state, dict) or not {"algorithm", "next_step"} <= state.keys():
        raise UserError(f"checkpoint: {path} is none of ours")
    return state


def restore(directory: str | Path, algorithm: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, Any]:
    """Puts a checkpoint's state into algorithm and optimiser. Returns (next step, evaluations so far).

    The optimiser keeps its own weight decay, momentum and the like: they are the recipe's, which may differ by now.
    """
    state = load(directory)
    algorithm.load_state_dict(state["algorithm"])
    chosen = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, values in zip(optimizer.param_groups, chosen, strict=True):
        group.update(values)
    return state["next_step"], state["evaluations"]
