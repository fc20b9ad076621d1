"""Resolve: what a recipe leaves to the data is filled in, and what cannot work is refused before anything starts.

Arguments are known by their name, whoever takes them, so that a user's own algorithm is served like the built-in ones:

| argument, anywhere in `algorithm` and `views` | becomes |
| --- | --- |
| `queue_size`   | at most the number of images, and a multiple of the global batch |
| `num_samples`  | the number of images |
| `num_clusters` | refused above the number of images |
| `img_size`     | `views.size` |
| `patch_size`   | `algorithm.backbone.patch_size`; refused if it does not divide `views.size` |
| `num_patches`  | (`views.size` / patch size) squared |
| `num_masked`   | `views.num_masked` |
| `num_tokens`   | `algorithm.tokenizer.num_tokens` |
| `neck.embed_dim`, else `neck.in_channels`, else `head.in_channels` | the backbone's `feature_dim` |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssl_ray.checks import REQUIRED
from ssl_ray.errors import UserError
from ssl_ray.paths import children, replace_at, walk
from ssl_ray.recipe import Recipe
from ssl_ray.spec import Spec

if TYPE_CHECKING:
    from ssl_ray.data.source import DatasetInfo


@dataclass(frozen=True)
class Resolved:
    """A recipe with nothing implicit left, and for each value that was filled in or changed: path -> where from."""

    recipe: Recipe
    origins: dict[str, str]


@dataclass(frozen=True)
class _Facts:
    """What rules may ask. Sizes in pixels, None where the recipe has no such thing."""

    num_samples: int
    global_batch_size: int
    view_size: int | None
    patch_size: int | None
    num_masked: int | None
    num_tokens: int | None


def resolve(recipe: Recipe, info: "DatasetInfo") -> Resolved:
    """Fits a recipe to a data set. Resolving twice changes nothing more.

    Raises UserError, naming the path to set, for what cannot work.
    """
    _refuse(recipe, info)
    origins = {}
    optimization, batch = recipe.optimization, recipe.training.global_batch_size
    if optimization.lr is None:
        recipe = replace_at(recipe, "optimization.lr", optimization.base_lr * batch / 256)
        origins["optimization.lr"] = f"base_lr {optimization.base_lr:g} x {batch} / 256"

    view_size, patch_size = _int(recipe, "views.size"), _int(recipe, "algorithm.backbone.patch_size")
    num_masked, num_tokens = _int(recipe, "views.num_masked"), _int(recipe, "algorithm.tokenizer.num_tokens")
    facts = _Facts(info.num_samples, batch, view_size, patch_size, num_masked, num_tokens)
    for path, value in [*walk(recipe.algorithm, "algorithm"), *walk(recipe.views, "views")]:
        rule = _RULES.get(path.rpartition(".")[2])
        fitted, origin = rule(path, value, facts) if rule else (value, "")
        if fitted != value:
            recipe, origins[path] = replace_at(recipe, path, fitted), origin
    if view_size is not None and view_size > max(info.image_size):
        height, width = info.image_size
        origins["views.size"] = f"larger than the images, {height} x {width} px: they are enlarged"

    feature_dim = _feature_dim(recipe)
    # A decoder of tokens calls their width embed_dim; its in_channels are those of the image.
    widths = ("algorithm.neck.embed_dim", "algorithm.neck.in_channels", "algorithm.head.in_channels")
    its_width = next((path for path in widths if _get(recipe, path) is not None), None)
    if feature_dim is not None and its_width is not None and _get(recipe, its_width) != feature_dim:
        recipe, origins[its_width] = replace_at(recipe, its_width, feature_dim), "what the backbone gives"

    for section in ("algorithm", "views", "optimization.optimizer"):
        recipe = replace_at(recipe, section, _complete(_get(recipe, section), section))
    return Resolved(recipe, origins)


def check_workers(recipe: Recipe, workers: int) -> None:
    """Raises UserError unless the global batch divides evenly among workers and micro-batches."""
    batch, accumulate = recipe.training.global_batch_size, recipe.training.accumulate
    if workers < 1 or batch % (workers * accumulate):
        allowed = [str(w) for w in range(1, batch // accumulate + 1) if batch % (w * accumulate) == 0]
        raise UserError(
            f"workers: {workers} x training.accumulate {accumulate} does not divide training.global_batch_size "
            f"{batch}; workers may be {', '.join(allowed)}"
        )


def _refuse(recipe: Recipe, info: "DatasetInfo") -> None:
    """What no filling in can mend."""
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
    if evaluation.every_epochs is not None and evaluation.k > bank:
        raise UserError(
            f"evaluation.k {evaluation.k} is more than the {bank} images it looks among; lower it"
        )


Rule = Callable[[str, Any, _Facts], tuple[Any, str]]


def _queue_size(path: str, value: Any, facts: _Facts) -> tuple[Any, str]:
    batch, images = facts.global_batch_size, facts.num_samples
    if not value:  # no queue
        return value, ""
    fitted = max(min(value, images) // batch, 1) * batch
    return fitted, f"{value} fitted to {images} images and the global batch of {batch}"


def _num_samples(path: str, value: Any, facts: _Facts) -> tuple[Any, str]:
    return facts.num_samples, "number of images"


def _num_clusters(path: str, value: Any, facts: _Facts) -> tuple[Any, str]:
    if isinstance(value, int) and value > facts.num_samples:
        raise UserError(f"{path} {value} is more than the {facts.num_samples} images; lower it")
    return value, ""


def _img_size(path: str, value: Any, facts: _Facts) -> tuple[Any, str]:
    if facts.view_size is None:
        return value, ""
    return facts.view_size, "views.size"


def _patch_size(path: str, value: Any, facts: _Facts) -> tuple[Any, str]:
    size, patch = facts.view_size, facts.patch_size
    if patch is None:
        return value, ""
    if size is not None and size % patch:
        raise UserError(
            f"algorithm.backbone.patch_size {patch} does not divide views.size {size}; set one of the two"
        )
    return patch, "algorithm.backbone.patch_size"


def _num_patches(path: str, value: Any, facts: _Facts) -> tuple[Any, str]:
    if facts.view_size is None or facts.patch_size is None:
        return value, ""
    side = facts.view_size // facts.patch_size
    return side * side, f"({facts.view_size} / {facts.patch_size}) squared"


def _num_masked(path: str, value: Any, facts: _Facts) -> tuple[Any, str]:
    return (value if facts.num_masked is None else facts.num_masked), "views.num_masked"


def _num_tokens(path: str, value: Any, facts: _Facts) -> tuple[Any, str]:
    return (value if facts.num_tokens is None else facts.num_tokens), "algorithm.tokenizer.num_tokens"


_RULES: dict[str, Rule] = {
    "queue_size": _queue_size,
    "num_samples": _num_samples,
    "num_clusters": _num_clusters,
    "img_size": _img_size,
    "patch_size": _patch_size,
    "num_patches": _num_patches,
    "num_masked": _num_masked,
    "num_tokens": _num_tokens,
}


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


def _get(node: Any, path: str) -> Any:
    """The value at a path, or None."""
    for name in path.split("."):
        node = (children(node) or {}).get(name)
    return None if node is REQUIRED else node


def _feature_dim(recipe: Recipe) -> int | None:
    """Width of the backbone's features, where it says so."""
    from ssl_ray.models.meta import without_memory

    backbone = recipe.algorithm.kwargs.get("backbone")
    if not isinstance(backbone, Spec) or backbone.missing():
        return None
    with without_memory():
        width = getattr(backbone.build(), "feature_dim", None)
    return width if isinstance(width, int) else None


def _int(recipe: Recipe, path: str) -> int | None:
    value = _get(recipe, path)
    return value if isinstance(value, int) else None
