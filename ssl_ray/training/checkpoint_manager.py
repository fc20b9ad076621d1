"""Saving and restoring a run's checkpoints, by all ranks together."""

from collections.abc import Sequence
from typing import Any

import torch

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.models.base import BaseModel
from ssl_ray.recipe import Recipe
from ssl_ray.training import checkpoint
from ssl_ray.training.context import SavedCheckpoint, WorkerContext


class CheckpointManager:
    """Checkpoints of an algorithm and its optimiser. All methods are collective."""

    def __init__(
        self,
        context: WorkerContext,
        recipe: Recipe,
        algorithm: BaseModel,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.context, self.recipe = context, recipe
        self.algorithm, self.optimizer = algorithm, optimizer

    def restore(self, kept: Sequence[SavedCheckpoint]) -> tuple[int, Any]:
        """Restores the newest checkpoint that is whole. Returns (next step, evaluations so far), the same on all ranks.

        kept: as the context gives them; without any it is (0, []). Raises UserError where all are broken.
        """
        broken: list[str] = []
        step = 0
        evaluations: Any = []
        for saved in reversed(kept):
            try:
                with saved.as_directory() as directory:
                    step, evaluations = checkpoint.restore(directory, self.algorithm, self.optimizer)
                break
            except checkpoint.BrokenCheckpoint as error:
                broken.append(str(error))
        if kept and len(broken) == len(kept):
            raise UserError(
                f"{'; '.join(broken)}; no earlier checkpoint is kept: begin again under another --name"
            )
        if distributed.agree(step)[0] != step:
            raise RuntimeError(
                "ranks read different checkpoints; the storage is not the same for all of them yet"
            )
        for each in broken if self.context.rank == 0 else ():
            self.context.send(f"{each}; going on from the one before, of step {step}")
        return step, evaluations

    def save(self, next_step: int, evaluations: list[dict[str, float]], *, last: bool) -> None:
        """Rank 0 writes into the run's folder, then all ranks register it.

        Where it cannot be written the driver is told. last: nothing can make up for that, and it is a UserError.
        """
        filesystem, folder = self.context.storage()
        written, failure = None, "not saved: see rank 0"
        if self.context.rank == 0:
            try:
                written = checkpoint.store(
                    filesystem,
                    folder,
                    algorithm=self.algorithm,
                    optimizer=self.optimizer,
                    recipe=self.recipe,
                    next_step=next_step,
                    evaluations=evaluations,
                )
            except OSError as error:
                failure = f"checkpoint: step {next_step} cannot be saved: {error}"
        if distributed.agree(written is not None)[0]:
            self.context.register(next_step, written)
        elif last:
            # Told to the user by rank 0 alone, which knows why.
            kind = UserError if self.context.rank == 0 else RuntimeError
            raise kind(f"{failure}; the last checkpoint is from before: mend that, and use --resume")
        elif self.context.rank == 0:
            self.context.send(f"{failure}; training goes on, the last checkpoint is from before")
