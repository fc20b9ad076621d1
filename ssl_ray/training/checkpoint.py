"""What a checkpoint holds, and how a run is restored from it.

Everything that the next step depends on and that is not a pure function of the step: weights, teachers, queues and
banks (all in the algorithm's state dict), the optimiser's state, and the number of the next step. Random numbers need
no place here: they are drawn from (seed, step, rank) and (seed, epoch, index, view).
"""

import contextlib
import json
import os
import pickle
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pyarrow import fs
from torch import nn

from ssl_ray.errors import UserError, first_line
from ssl_ray.filesystems import open_uri, upload
from ssl_ray.interop.weights import load_plain
from ssl_ray.recipe import Recipe

FILE = "checkpoint.pt"
RECIPE = "recipe.json"


class BrokenCheckpoint(UserError):
    """A checkpoint that is not whole: a disk was full, a machine went down."""


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
    path = Path(directory) / FILE
    try:
        torch.save(state, path)
    except RuntimeError as error:  # torch's word for a write that failed
        free = shutil.disk_usage(directory).free
        raise OSError(f"{path} cannot be written, {free / 1e6:,.0f} MB are free there") from error
    (Path(directory) / RECIPE).write_text(json.dumps(recipe.to_json(), indent=2))


def store(filesystem: fs.FileSystem, folder: str, **contents: Any) -> str:
    """Writes a checkpoint into a run's folder, whole or not at all; returns its path there. Raises OSError.

    On a disk it gets its name when all of it is there. In an object store its name has no meaning before the run's list
    of checkpoints holds it. contents: as of `save`.
    """
    token = secrets.token_hex(3)  # a run that goes back reaches the same step again
    path = f"{folder}/checkpoint_{contents['next_step']:09d}_{token}"
    with _workplace(filesystem, folder, token) as directory:
        save(directory, **contents)
        if isinstance(filesystem, fs.LocalFileSystem):
            for file in (FILE, RECIPE):
                with open(f"{directory}/{file}", "rb") as written:
                    os.fsync(written.fileno())
            os.rename(directory, path)
        else:
            upload(directory, filesystem, path)
    return path


@contextlib.contextmanager
def _workplace(filesystem: fs.FileSystem, folder: str, token: str) -> Iterator[str]:
    """A folder to write in, on the disk of the run's folder if it has one; nothing is left of it."""
    here = f"{folder}/.saving_{token}" if isinstance(filesystem, fs.LocalFileSystem) else tempfile.mkdtemp()
    try:
        os.makedirs(here, exist_ok=True)
        yield here
    finally:
        shutil.rmtree(here, ignore_errors=True)


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A checkpoint's folder as a local path; a copy that is gone afterwards where it lies in an object store."""
    if "://" not in uri:
        yield Path(uri)
        return
    filesystem, path = open_uri(uri)
    with tempfile.TemporaryDirectory() as directory:
        fs.copy_files(path, directory, source_filesystem=filesystem)
        yield Path(directory)


def load(directory: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads what `save` wrote; only tensors and plain values are accepted.

    Raises BrokenCheckpoint where there is no checkpoint or not all of one, UserError for anything else.
    """
    path = Path(directory) / FILE
    if not path.exists():
        raise BrokenCheckpoint(f"checkpoint: {path} does not exist; give a folder that holds {FILE}")
    try:
        state = load_plain(path, device)
    except UserError as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, pickle.UnpicklingError):  # whole, and refused
            raise UserError(f"checkpoint: {error}") from cause
        raise BrokenCheckpoint(f"checkpoint: {path} cannot be read: {first_line(cause)}") from error
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
