"""Metrics as small charts: SVG paths, to be read without a script, and the numbers for one that reads them out."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_ray.tracking import Point

# Of a chart, in units of its viewBox: about pixels.
WIDTH, HEIGHT = 380, 196
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 10, 24
_POINTS = 240  # drawn of one curve, where there are few runs
_NOISY = 40  # points above which a noisy curve gets a smooth one
_NOISE = 1.5  # a curve is noisy if it goes so much farther up and down than its running mean
_WINDOW = 15  # smoothing: about one part in so many of the curve

_TITLES = {
    "train/loss": "Training loss",
    "val/knn_top1": "kNN accuracy on held-out images",
    "train/lr": "Learning rate",
    "embedding/std": "Spread of the features",
    "embedding/rankme": "Effective rank of the features (RankMe)",
    "projection/std": "Spread of the projections",
    "perf/images_per_second": "Images per second",
    "perf/step_time": "Seconds per step",
    "perf/data_wait": "Share of step time spent waiting for data",
    "train/contrast_top1": "Right key ranked first",
    "train/token_accuracy": "Tokens guessed right",
    "train/grad_norm": "Norm of the gradient",
    "sys/gpu_mem_gb": "GPU memory, GiB",
}
_FIRST = ("train/loss", "val/knn_top1", "embedding/rankme", "embedding/std", "projection/std", "train/lr")
_SHARES = ("knn_top1", "data_wait", "accuracy", "top1", "top5")
_LINES = {"val/knn_top1": ("baseline/raw_pixels_knn_top1", "raw pixels")}
THROUGHPUT = ("perf/", "sys/")
_ELSEWHERE = ("baseline/", "data/", "eval/")


@dataclass(frozen=True)
class Curve:
    """One run's values of a metric. run: number of the run, which gives it its colour."""

    run: int
    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """A chart ready for the page.

    last: for each curve (run, name, its last value as text). rule: y, label, and the end at which it stands. notes:
    what the curves cannot show. data: for the script: the curves' numbers, and how the axes map them to the viewBox.
    """

    metric: str
    title: str
    last: Sequence[tuple[int, str, str]]
    ticks_x: Sequence[tuple[float, str]]
    ticks_y: Sequence[tuple[float, str]]
    paths: Sequence[tuple[int, str, str]]
    dots: Sequence[tuple[int, float, float]]
    rule: tuple[float, str, str] | None
    notes: Sequence[str]
    data: Mapping[str, Any]
    box: Mapping[str, float]


def charts(runs: Sequence[tuple[str, Mapping[str, Sequence[Point]]]]) -> tuple[list[Chart], list[Chart]]:
    """Charts of every metric that has a course: of what is learned, and of how fast.

    runs: name and metrics of each. Metrics with one value only are numbers, not charts.
    """
    names = {metric for _, metrics in runs for metric in metrics}
    names = {n for n in names if not n.startswith(_ELSEWHERE)}
    first = [n for n in _FIRST if n in names]
    ordered = first + sorted(names - set(first), key=lambda n: (not n.startswith("val/"), n))
    drawn = []
    count = max(60, min(_POINTS, 3 * _POINTS // max(1, len(runs))))
    for metric in ordered:
        curves = [
            Curve(i, name, metrics[metric]) for i, (name, metrics) in enumerate(runs) if metrics.get(metric)
        ]
        reference, label = _LINES.get(metric, ("", ""))
        values = [metrics[reference][-1].value for _, metrics in runs if metrics.get(reference)]
        # Runs on several data sets have a line each, which one line cannot say.
        rule = (values[0], label) if values and max(values) == min(values) else None
        if any(len(c.points) > 1 for c in curves):
            drawn.append(chart(metric, curves, rule, count))
    fast = [c for c in drawn if c.metric.startswith(THROUGHPUT)]
    return [c for c in drawn if c not in fast], fast


def chart(
    metric: str, curves: Sequence[Curve], rule: tuple[float, str] | None = None, count: int = _POINTS
) -> Chart:
    """One chart of a metric. rule: a value to draw across all of it, and what it is. count: points of a curve."""
    share = metric.endswith(_SHARES)
    finite = [[p for p in c.points if math.isfinite(p.value)] for c in curves]
    shown = [p.value for points in finite for p in points] + ([rule[0]] if rule else [])
    steps = [p.step for c in curves for p in c.points]
    low, high = _range(shown or [0.0])
    first, last = min(0, *steps), max(steps)
    x = _Axis(first, max(last, first + 1), _LEFT, WIDTH - _RIGHT)
    y = _Axis(low, high, HEIGHT - _BOTTOM, _TOP)

    paths: list[tuple[int, str, str]] = []
    dots: list[tuple[int, float, float]] = []
    data = []
    notes = []
    for c, points in zip(curves, finite, strict=True):
        pieces = [thinned(piece, count) for piece in _pieces(c.points)]
        line = "".join(_path(piece, x, y) for piece in pieces)
        noisy = len(points) > _NOISY and _way(points) > _NOISE * _way(smoothed(points))
        paths.append((c.run, "raw" if noisy else "line", line))
        if noisy:
            smooth = thinned(smoothed(points), count)
            paths.append((c.run, "line", _path(smooth, x, y)))
        if len(points) <= 12:
            dots += [(c.run, round(x(p.step), 1), round(y(p.value), 1)) for p in points]
        if missing := len(c.points) - len(points):
            notes.append(f"{c.name}: {missing} values are not finite")
        kept = thinned(points, count)
        data.append(
            {
                "run": c.run,
                "name": c.name,
                "x": [p.step for p in kept],
                "y": [float(f"{p.value:.5g}") for p in kept],
            }
        )
    ticks_y = [(round(y(v), 1), label) for v, label in ticks(low, high, 5, share)]
    ticks_x = [(round(x(v), 1), label) for v, label in ticks(first, last, 5) if v == int(v)]
    return Chart(
        metric=metric,
        title=_TITLES.get(metric) or _words(metric),
        last=[(c.run, c.name, number(c.points[-1].value, share)) for c in curves],
        ticks_x=ticks_x,
        ticks_y=ticks_y,
        paths=paths,
        dots=dots,
        rule=(round(y(rule[0]), 1), f"{rule[1]} {number(rule[0], share)}", _side(rule[0], finite))
        if rule
        else None,
        notes=notes,
        data={"share": share, "x": [first, max(last, first + 1)], "curves": data},
        box={
            "width": WIDTH,
            "height": HEIGHT,
            "left": _LEFT,
            "right": WIDTH - _RIGHT,
            "top": _TOP,
            "bottom": HEIGHT - _BOTTOM,
        },
    )


def _words(metric: str) -> str:
    """A title for a metric that nobody gave one: "train/token_accuracy" -> "Token accuracy, train"."""
    group, slash, name = metric.partition("/")
    words = (name if slash else group).replace("_", " ")
    return words[:1].upper() + words[1:] + (f", {group}" if slash else "")


def thinned(points: Sequence[Point], count: int) -> Sequence[Point]:
    """At most about `count` of the points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= count:
        return points
    kept = [points[0]]
    size = 2 * len(points) / count
    for i in range(count // 2):
        part = points[int(i * size) : int((i + 1) * size)]
        if part:
            extremes = {min(part, key=lambda p: p.value), max(part, key=lambda p: p.value)}
            kept += sorted(extremes, key=lambda p: p.step)
    kept.append(points[-1])
    return sorted(set(kept), key=lambda p: p.step)


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Means over a window around each point, narrower towards the ends so that they are not bent."""
    half = max(1, len(points) // _WINDOW // 2)
    sums = [0.0, *itertools.accumulate(p.value for p in points)]
    smooth = []
    for i, p in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        smooth.append(p._replace(value=(sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return smooth


def ticks(low: float, high: float, count: int, share: bool = False) -> list[tuple[float, str]]:
    """Round values from low to high, at most about `count`, with their labels."""
    if not high > low:
        return [(low, number(low, share))]
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999) * magnitude
    first = math.ceil(low / step - 1e-9)
    values = [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
    decimals = max(0, -math.floor(math.log10(step * (100 if share else 1)) + 1e-9))
    if step / magnitude == 2.5:
        decimals += 1
    return [(v, _label(v, decimals, share)) for v in values]


def number(value: float, share: bool = False) -> str:
    """A value for people: four digits, or percent."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if share:
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _label(value: float, decimals: int, share: bool) -> str:
    if share:
        return f"{100 * value:.{decimals}f} %"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.{decimals}f}"


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def _range(values: Iterable[float]) -> tuple[float, float]:
    """What the y axis shows: the values and some air, from 0 where that is near."""
    values = list(values)
    low, high = min(values), max(values)
    if low == high:
        reach = abs(low) / 10 or 1.0
        return low - reach, high + reach
    air = (high - low) * 0.06
    return (0.0 if 0 <= low < 0.35 * high else low - air), (0.0 if 0 >= high > 0.35 * low else high + air)


def _pieces(points: Sequence[Point]) -> list[list[Point]]:
    """The stretches without a value that is not finite."""
    groups = itertools.groupby(points, key=lambda p: math.isfinite(p.value))
    return [list(group) for finite, group in groups if finite]


def _path(points: Sequence[Point], x: _Axis, y: _Axis) -> str:
    if len(points) == 1:
        return f"M{x(points[0].step):.1f} {y(points[0].value):.1f}h0"
    return "M" + "L".join(f"{x(p.step):.1f} {y(p.value):.1f}" for p in points)


def _way(points: Sequence[Point]) -> float:
    """How far a curve goes up and down in all."""
    return sum(abs(b.value - a.value) for a, b in itertools.pairwise(points))


def _side(value: float, curves: Sequence[Sequence[Point]]) -> str:
    """The end of a rule, as an SVG text-anchor, where the curves leave more room for its label."""
    ends = [min((abs(c[i].value - value) for c in curves if c), default=0.0) for i in (0, -1)]
    return "start" if ends[0] > ends[1] else "end"
