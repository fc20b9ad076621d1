"""Pictures of a search: which values went with which score."""

import math
from collections.abc import Sequence
from typing import Any

from ssl_ray.tuning.outcome import Outcome, ranked, show
from ssl_ray.tuning.space import Choice, LogUniform, Search

# Beside its axis, and readable where lines cross it.
_LABEL: dict[str, Any] = {
    "xytext": (4, 0),
    "textcoords": "offset points",
    "fontsize": 8,
    "va": "center",
    "zorder": 4,
    "bbox": {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
}


def parallel_coordinates(outcomes: Sequence[Outcome], search: Search, objective: str) -> Any:
    """A matplotlib figure: a line per trial across one axis per searched path, and the score's at the right.

    Colour is the score; trials that were stopped are dashed, the best is drawn thick. None with no scored trial.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    scored = [o for o in reversed(ranked(outcomes)) if o.score is not None and o.status != "failed"]
    if not scored:
        return None
    paths = list(search)
    scores = [float(o.score or 0.0) for o in scored]
    low, high = min(scores), max(scores)
    figure = Figure(figsize=(2.2 * (len(paths) + 1) + 1, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["viridis"]
    for i, (outcome, score) in enumerate(zip(scored, scores, strict=True)):
        height = (score - low) / (high - low) if high > low else 0.5
        places = [_place(search, path, outcome.values.get(path)) for path in paths]
        heights = [math.nan if place is None else place for place in places]
        best = i == len(scored) - 1
        axes.plot(
            range(len(paths) + 1),
            [*heights, height],
            color=colours(height),
            linewidth=3 if best else 1.5,
            linestyle="-" if outcome.status == "finished" else "--",
            alpha=1.0 if best else 0.75,
            zorder=3 if best else 2,
        )
    for x, path in enumerate(paths):
        axes.axvline(x, color="0.6", linewidth=1, zorder=1)
        for value in _ticks(search, path):
            place = _place(search, path, value)
            if place is not None:
                axes.annotate(show(value), (x, place), **_LABEL)
    axes.axvline(len(paths), color="0.6", linewidth=1, zorder=1)
    for place in (0.0, 0.5, 1.0) if high > low else (0.5,):
        value = low + place * (high - low) if high > low else low
        axes.annotate(f"{value:.3f}", (len(paths), place), **_LABEL)
    names = [path.rpartition(".")[2] for path in paths]
    axes.set_xticks(range(len(paths) + 1), [*names, objective])
    axes.set_yticks([])
    axes.set(ylim=(-0.06, 1.06), xlim=(-0.15, len(paths) + 0.45))
    axes.set_title(
        f"{len(scored)} trials, the brighter the better; dashed: stopped early", loc="left", fontsize=10
    )
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def learning_curves(outcomes: Sequence[Outcome], objective: str) -> Any:
    """A matplotlib figure: the score of each trial over its epochs, the best one thick. None without scores."""
    from matplotlib.figure import Figure

    drawn = [o for o in ranked(outcomes) if len(o.curve) > 1]
    if not drawn:
        return None
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for i, outcome in reversed(list(enumerate(drawn))):
        epochs, scores = zip(*outcome.curve, strict=True)
        axes.plot(
            epochs,
            scores,
            "o-" if outcome.status == "finished" else "o--",
            color="tab:orange" if i == 0 else "0.6",
            linewidth=2.5 if i == 0 else 1.2,
            markersize=3,
            label=f"{outcome.name}, the best" if i == 0 else None,
        )
    axes.set(xlabel="epoch", ylabel=objective, title="Trials; dashed: stopped early")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _place(search: Search, path: str, value: Any) -> float | None:
    """Where on its axis a value is, 0..1; None for one that is not there."""
    space = search[path]
    if isinstance(space, Choice):
        values = list(space.values)
        if value not in values:
            return None
        return values.index(value) / (len(values) - 1) if len(values) > 1 else 0.5
    if not isinstance(value, int | float):
        return None
    if isinstance(space, LogUniform):
        return math.log(value / space.low) / math.log(space.high / space.low)
    return (value - space.low) / (space.high - space.low)


def _ticks(search: Search, path: str) -> Sequence[Any]:
    space = search[path]
    if isinstance(space, Choice):
        return space.values
    if isinstance(space, LogUniform):
        return (space.low, math.sqrt(space.low * space.high), space.high)
    return (space.low, (space.low + space.high) / 2, space.high)
