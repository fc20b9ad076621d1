"""What follows from what: arguments that the data set or other arguments decide.

They are known by their name, whoever takes them, so that a user's own algorithm is served like the built-in ones:

| argument, anywhere in `views` and `algorithm` | becomes |
| --- | --- |
| `queue_size`   | at most the number of images, and a multiple of the global batch |
| `num_samples`  | the number of images |
| `num_clusters` | refused above the number of images |
| `num_masked`   | `views.num_masked`, which keeps its share of the patches where there are too few |
| `min_masked`   | at most `views.num_masked` |
| `img_size`     | `views.size` |
| `patch_size`   | `algorithm.backbone.patch_size`; refused if it does not divide `views.size` |
| `num_patches`  | (`views.size` / patch size) squared |
| `mask_patch_size` | if it does not divide `views.size` or is no multiple of the patch size: the nearest that is |
| `token_size`   | patches along a side, times the `cell_size` of `algorithm.tokenizer` |
| `num_tokens`   | `algorithm.tokenizer.num_tokens` |
| `small_size`, `patch_side` | if too large for `views.size`: the published share of it |
| `neck.embed_dim`, else `neck.in_channels` | the backbone's `feature_dim` |
| `encoder_stride` | the backbone's `stride`; refused if it does not divide `views.size` |
| `pretrained`, `weights` | the absolute path of the file, where there is one here |
| `head.in_channels`, `memory.dim`, `predictor.in_channels`, `predictor.out_channels` | `algorithm.neck.out_channels`; \
the backbone's `feature_dim` where a neck says nothing about widths, or there is none |
"""

from typing import TYPE_CHECKING

from ssl_ray.paths import replace_at, walk
from ssl_ray.recipe import Recipe
from ssl_ray.rules import counts, files, sizes, widths
from ssl_ray.rules.facts import Facts, Rule

if TYPE_CHECKING:
    from ssl_ray.data.source import DatasetInfo

# In this order: each sees what those before it have fitted.
RULES: dict[str, Rule] = {
    "queue_size": counts.queue_size,
    "num_samples": counts.num_samples,
    "num_clusters": counts.num_clusters,
    "num_masked": sizes.num_masked,
    "min_masked": sizes.min_masked,
    "img_size": sizes.img_size,
    "patch_size": sizes.patch_size,
    "num_patches": sizes.num_patches,
    "mask_patch_size": sizes.mask_patch_size,
    "token_size": sizes.token_size,
    "num_tokens": counts.num_tokens,
    "small_size": sizes.small_size,
    "patch_side": sizes.patch_side,
    "neck.embed_dim": widths.feature_dim,
    "neck.in_channels": widths.neck_in_channels,
    "encoder_stride": sizes.encoder_stride,
    "head.in_channels": widths.projection_dim,
    "predictor.in_channels": widths.projection_dim,
    "predictor.out_channels": widths.projection_dim,
    "memory.dim": widths.projection_dim,
    **dict.fromkeys(("pretrained", "weights"), files.weights),
}
FILES = (".pretrained", ".weights")
"""Ends of paths whose value may be a file."""


def located(recipe: Recipe) -> Recipe:
    """The recipe with the absolute path of every file that it names and that is here; else as it is."""
    for path, value in walk(recipe.algorithm, "algorithm"):
        if path.endswith(FILES) and (found := files.weights(path, value, None)) is not None:
            recipe = replace_at(recipe, path, found[0])
    return recipe


def fit(recipe: Recipe, info: "DatasetInfo") -> tuple[Recipe, dict[str, str]]:
    """The recipe with every rule obeyed, and for each value that had to change: path -> where the new one is from.

    Raises UserError, naming the path to set, where a rule cannot be obeyed.
    """
    facts, origins = Facts(recipe, info), {}
    for name, rule in RULES.items():
        for path, value in (*walk(facts.recipe.views, "views"), *walk(facts.recipe.algorithm, "algorithm")):
            if not path.endswith(f".{name}"):
                continue
            fitted, origin = rule(path, value, facts) or (value, "")
            if fitted != value:
                facts, origins[path] = Facts(replace_at(facts.recipe, path, fitted), info), origin
    return facts.recipe, origins
