"""Rules of sizes: views and patches in pixels, patches of a view and how many of them are hidden."""

from typing import Any

from ssl_ray.errors import UserError
from ssl_ray.paths import value_at
from ssl_ray.rules.facts import Facts, Fitted

# SwAV, arXiv 2006.09882: small views of 96 pixels, large ones of 224.
_SMALL_SHARE = 96 / 224
# Doersch et al., arXiv 1505.05192, in pixels of MMSelfSup: patches of 64 in cells of 85, which leaves room to move.
_PATCH_SHARE = 64 / 85


def img_size(path: str, value: Any, facts: Facts) -> Fitted | None:
    """The side of the views."""
    return None if facts.view_size is None else (facts.view_size, "views.size")


def patch_size(path: str, value: Any, facts: Facts) -> Fitted | None:
    """The backbone's. Raises UserError if views do not divide into such patches."""
    size, patch = facts.view_size, facts.patch_size
    if patch is None:
        return None
    if size is not None and (patch < 1 or size % patch):
        raise UserError(
            f"algorithm.backbone.patch_size {patch} does not divide views.size {size}; set one of the two"
        )
    return patch, "algorithm.backbone.patch_size"


def num_patches(path: str, value: Any, facts: Facts) -> Fitted | None:
    """Patches of a view."""
    if facts.side is None:
        return None
    return facts.side**2, f"({facts.view_size} / {facts.patch_size}) squared"


def num_masked(path: str, value: Any, facts: Facts) -> Fitted | None:
    """What the views hide; there, as large a share of the patches as before, if it would now be all of them.

    Raises UserError where the recipe no longer says how many patches there were.
    """
    of_views = facts.count("views.num_masked")
    if path != "views.num_masked" and of_views is not None:
        return of_views, "views.num_masked"
    if not isinstance(value, int) or facts.side is None or value < facts.side**2:
        return None
    patches = facts.side**2
    # Not fitted yet, these still say for how many patches the recipe was written.
    size, patch = facts.count("algorithm.backbone.img_size"), facts.count("views.patch_size")
    before = (size // patch) ** 2 if size and patch else 0
    if value >= before:
        raise UserError(f"{path} {value} would hide all of the {patches} patches of an image; lower it")
    return max(1, round(value * patches / before)), f"as many of {patches} patches as {value} of {before}"


def min_masked(path: str, value: Any, facts: Facts) -> Fitted | None:
    """At most as many patches as are hidden altogether."""
    hidden = facts.count("views.num_masked")
    if hidden is None or not isinstance(value, int) or value <= hidden:
        return None
    return hidden, "at most views.num_masked"


def mask_patch_size(path: str, value: Any, facts: Facts) -> Fitted | None:
    """A multiple of the patch size that divides a view: the nearest one, unless it is one already."""
    size, patch = facts.view_size, facts.patch_size or facts.count("views.patch_size")
    if not isinstance(value, int) or size is None or patch is None:
        return None
    fitting = [side for side in range(patch, size + 1, patch) if size % side == 0]
    if value in fitting or not fitting:
        return None
    cells = fitting[:-1] or fitting  # one as large as the view would hide all of it or nothing
    nearest = min(cells, key=lambda side: abs(side - value))
    return nearest, f"{value} fitted to views.size {size} and the patch size {patch}"


def token_size(path: str, value: Any, facts: Facts) -> Fitted | None:
    """As many pixels as make a token of every patch."""
    # An argument of the tokenizer's, or the same for all of its kind.
    cell = facts.count("algorithm.tokenizer.cell_size")
    if cell is None:
        tokenizer = value_at(facts.recipe, "algorithm.tokenizer")
        cell = getattr(getattr(tokenizer, "target", None), "cell_size", None)
    if facts.side is None or not isinstance(cell, int):
        return None
    return facts.side * cell, f"{facts.side} patches along a side, a token for {cell} pixels"


def small_size(path: str, value: Any, facts: Facts) -> Fitted | None:
    """A published share of a large view, if it is larger than that view."""
    size = facts.view_size
    if size is None or not isinstance(value, int) or value <= size:
        return None
    return max(1, round(size * _SMALL_SHARE)), f"{value} is larger than views.size {size}: 96 / 224 of it"


def patch_side(path: str, value: Any, facts: Facts) -> Fitted | None:
    """A published share of a cell, a third of the view, if it does not fit in there.

    Raises UserError if there is no room at all.
    """
    size, gap = facts.view_size, facts.count("views.gap") or 0
    if size is None or not isinstance(value, int) or value <= size // 3 - gap:
        return None
    room = size // 3 - gap
    if room < 1:
        raise UserError(
            f"views.gap {gap} leaves no room for a patch in a third of views.size {size}; set one of the two"
        )
    origin = f"{value} is too large for a third of views.size {size}: 64 / 85 of the room there"
    return max(1, round(room * _PATCH_SHARE)), origin


def encoder_stride(path: str, value: Any, facts: Facts) -> Fitted | None:
    """The backbone's stride. Raises UserError if views are not made of whole cells of it."""
    size, stride = facts.view_size, facts.of_backbone("stride")
    if stride is None:
        return None
    if size is not None and size % stride:
        raise UserError(
            f"views.size {size} is no multiple of {stride} pixels, the stride of algorithm.backbone; choose "
            f"{max(1, size // stride) * stride} or another multiple"
        )
    return stride, "the backbone's stride"
