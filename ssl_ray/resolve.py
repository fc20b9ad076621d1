"""Resolve: what a recipe leaves to the data is filled in, and what cannot work is refused before anything starts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssl_ray.errors import UserError
from ssl_ray.paths import replace_at, value_at, walk
from ssl_ray.recipe import Recipe
from ssl_ray.rules import fit
from ssl_ray.spec import Spec
from ssl_ray.tracking import redact

if TYPE_CHECKING:
    from ssl_ray.data.source import DatasetInfo


@dataclass(frozen=True)
class Resolved:
    """A recipe with nothing implicit left, and for each value that was filled in or changed: path -> where from."""

    recipe: Recipe
    origins: dict[str, str]


def resolve(recipe: Recipe, info: "DatasetInfo", *, held_out: bool = True) -> Resolved:
    """Fits a recipe to a data set. Resolving twice changes nothing more.

    info: of the images to train on. held_out: whether there are others to judge by; without them no kNN is computed.
    Raises UserError, naming the path to set, for what cannot work.
    """
    _refuse(recipe, info, held_out)
    origins = {}
    optimization, batch = recipe.optimization, recipe.training.global_batch_size
    if optimization.lr is None:
        recipe = replace_at(recipe, "optimization.lr", optimization.base_lr * batch / 256)
        origins["optimization.lr"] = f"base_lr {optimization.base_lr:g} x {batch} / 256"

    recipe, fitted = fit(recipe, info)
    origins |= fitted
    view_size = value_at(recipe, "views.size")
    if isinstance(view_size, int) and view_size > max(info.image_size):
        height, width = info.image_size
        origins["views.size"] = f"larger than the images, {height} x {width} px: they are enlarged"

    for section in ("algorithm", "views", "optimization.optimizer"):
        recipe = replace_at(recipe, section, _complete(value_at(recipe, section), section))
    return Resolved(recipe, origins)


def _refuse(recipe: Recipe, info: "DatasetInfo", held_out: bool) -> None:
    """What no filling in can mend, and what must not be written down: a recipe goes into files, MLflow and logs."""
    for path, value in walk(recipe):
        if isinstance(value, str) and redact(value) != value:
            raise UserError(
                f"{path}: {redact(value)} holds credentials; put them into the environment (AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, ...), for a recipe is kept in files"
            )
    training, optimization, evaluation = recipe.training, recipe.optimization, recipe.evaluation
    batch, images = training.global_batch_size, info.num_samples
    if batch > images:
        raise UserError(
            f"training.global_batch_size {batch} is more than the {images} images of {info.name}; lower it"
        )
    if batch % training.accumulate:
        raise UserError(
            f"training.accumulate {training.accumulate} does not divide training.global_batch_size {batch}"
        )
    if optimization.warmup_epochs > training.epochs:
        raise UserError(
            f"optimization.warmup_epochs {optimization.warmup_epochs:g} is longer than the run, training.epochs "
            f"{training.epochs}; shorten the one or lengthen the other"
        )
    if bool(optimization.milestones) != (optimization.schedule == "step"):
        raise UserError(
            f"optimization.milestones {list(optimization.milestones)} with optimization.schedule "
            f"{optimization.schedule!r}: schedule 'step' needs milestones, no other takes them"
        )
    bank = min(images, evaluation.max_samples)
    labelled = held_out and info.num_classes is not None
    # A fine-tuning is judged by its own answers.
    judged_by_knn = evaluation.knn and not getattr(recipe.algorithm.target, "needs_labels", False)
    if evaluation.every_epochs is not None and labelled and judged_by_knn and evaluation.k > bank:
        raise UserError(
            f"evaluation.k {evaluation.k} is more than the {bank} images it looks among; lower it, or set "
            "evaluation.knn=false"
        )
    if evaluation.on_collapse == "stop":
        if evaluation.every_epochs is None:
            raise UserError(
                "evaluation.on_collapse 'stop' with evaluation.every_epochs null: without evaluations no collapse is "
                "seen; set evaluation.every_epochs"
            )
        if not evaluation.monitors & {"std", "top_direction", "clusters"}:
            raise UserError(
                "evaluation.on_collapse 'stop' with evaluation.std, top_direction and clusters all false: nothing can "
                "raise the alarm; switch one on"
            )


def _complete(value: Any, path: str) -> Any:
    """A Spec with its signature's defaults written out, nested ones too. Raises UserError for a missing argument."""
    if isinstance(value, list | tuple):
        return type(value)(_complete(v, f"{path}.{i}") for i, v in enumerate(value))
    if isinstance(value, dict):
        return {n: _complete(v, f"{path}.{n}") for n, v in value.items()}
    if not isinstance(value, Spec):
        return value
    # An optimiser gets its parameters and its rate from the run.
    late = {"params", "lr"} if path == "optimization.optimizer" else set()
    if missing := set(value.missing()) - late:
        raise UserError(f"{path}: {value.name} needs {', '.join(sorted(missing))}")
    given = {n: _complete(v, f"{path}.{n}") for n, v in value.kwargs.items()}
    return value.replace(**given, **{n: v for n, v in value.defaults().items() if n not in late})
