"""Whether workers get enough rows at a time: losses among a batch's rows need others, batch norm several values.

A row is an image, whatever the number of its views.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models.base import BaseModel
from ssl_ray.models.sync_batch_norm import SyncBatchNorm
from ssl_ray.paths import walk
from ssl_ray.recipe import Recipe
from ssl_ray.workers import accumulation


class Share(NamedTuple):
    """What each of `workers` takes at once: `rows`, in each of the `micro_batches` of a step."""

    rows: int
    workers: int
    micro_batches: int


def shares(recipe: Recipe, sizes: Sequence[int]) -> list[Share]:
    """One for each size that a group of workers may have, the smallest first."""
    batch = recipe.training.global_batch_size
    counts = ((workers, accumulation(recipe, workers)) for workers in sizes)
    return sorted(Share(batch // workers // count, workers, count) for workers, count in counts)


def split(recipe: Recipe) -> tuple[str, int]:
    """Path and value of the argument `split_bn`, whoever takes it: into so many groups a worker's rows are dealt."""
    for path, value in walk(recipe.algorithm, "algorithm"):
        if path.endswith(".split_bn") and isinstance(value, int):
            return path, value
    return "", 1


def require_groups(recipe: Recipe, share: Share) -> None:
    """Raises UserError where the rows of a worker cannot be dealt to the groups of batch norm evenly."""
    path, groups = split(recipe)
    if groups > 1 and share.rows % groups:
        raise UserError(
            f"{path}: {groups} groups cannot share evenly what a worker gets at once of {_batch(recipe, share)}, which "
            f"is {_images(share.rows)}; set it to a divisor of {share.rows}, or {_more(recipe, share, alone=True)}"
        )


def require_rows(recipe: Recipe, algorithm: BaseModel, share: Share) -> None:
    """Raises UserError where a loss gets fewer rows than it needs."""
    together = share.rows * share.workers
    for module in algorithm.modules():
        least = getattr(module, "min_rows", 1)
        if together < least:
            raise UserError(
                f"algorithm: {type(module).__name__} needs {least} images or more at once, and "
                f"{_batch(recipe, share)} holds {together}; {_more(recipe, share)}"
            )


def watch_batch_norm(recipe: Recipe, algorithm: BaseModel, share: Share) -> list[str]:
    """Names of the batch norms that have seen a single value per channel: filled while a loss of `share.rows` is taken.

    A batch norm in training mode is put into evaluation mode, in which torch lets it have whatever it is given. What
    workers normalise together counts together, though there are none yet.
    """
    starved: list[str] = []

    def look(name: str, workers: int, x: Tensor) -> None:
        if x.numel() // x.shape[1] * workers < 2:
            starved.append(name)

    for name, module in algorithm.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            synced = recipe.training.sync_bn or isinstance(module, SyncBatchNorm)
            workers = share.workers if synced else 1
            module.eval()
            module.register_forward_pre_hook(lambda _, x, name=name, workers=workers: look(name, workers, *x))
    return starved


def require_values(recipe: Recipe, share: Share, starved: Sequence[str]) -> None:
    """Raises UserError for what `watch_batch_norm` has found."""
    if not starved:
        return
    path, groups = split(recipe)
    # Groups are the teacher's; where the student's batch norms starve, too, smaller groups are not to blame.
    grouped = groups > 1 and all(name.startswith("teacher.") for name in starved)
    each = f", {share.rows // groups} in each of {path} {groups} groups" if grouped else ""
    raise UserError(
        f"algorithm: batch norm {starved[0]} would see one value per channel, which it cannot normalise: of "
        f"{_batch(recipe, share)} a worker gets {_images(share.rows)} at once{each}; "
        + (f"lower {path} or " if grouped else "")
        + _more(recipe, share, alone=True)
    )


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"


def _batch(recipe: Recipe, share: Share) -> str:
    """The batch, and what it is divided by."""
    parts = [f"training.global_batch_size {recipe.training.global_batch_size}"]
    if share.micro_batches > 1:
        parts.append(f"in {share.micro_batches} micro-batches")
    if share.workers > 1:
        parts.append(f"on {share.workers} workers")
    return " ".join(parts)


def _more(recipe: Recipe, share: Share, alone: bool = False) -> str:
    """What to do for more rows at once. alone: those of other workers do not help."""
    training = recipe.training
    ways = ["raise training.global_batch_size"]
    if training.accumulate > 1:
        ways.append("lower training.accumulate")
    if share.micro_batches > training.accumulate:
        ways.append(f"raise training.max_rows {training.max_rows}")
    if alone and share.workers > 1:
        ways.append("use fewer --workers")
        if not training.sync_bn:
            ways.append("set training.sync_bn=true")
    return " or ".join(ways)
