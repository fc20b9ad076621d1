"""Charts say what the numbers say."""

import math
import re

import numpy as np
import pytest

from ssl_ray.tracking import Point
from ssl_ray.trained.report.charts import (
    HEIGHT,
    WIDTH,
    Curve,
    chart,
    charts,
    number,
    smoothed,
    thinned,
    ticks,
)


def points(*values: float, start: int = 0) -> list[Point]:
    return [Point(start + i, v, float(i)) for i, v in enumerate(values)]


def coordinates(path: str) -> np.ndarray:
    return np.array([[float(n) for n in pair.split()] for pair in re.findall(r"[\d.]+ [\d.]+", path)])


def test_a_curve_is_drawn_where_its_axes_say() -> None:
    values = [3.0, 7.0, 5.0, 11.0]
    drawn = chart("train/loss", [Curve(0, "a", points(*values))])
    ((_, kind, path),) = drawn.paths
    xy = coordinates(path)
    # The labelled ticks give the scale: a line through them maps every value to its place.
    ticks_y = np.array([(float(label), y) for y, label in drawn.ticks_y])
    ticks_x = np.array([(float(label), x) for x, label in drawn.ticks_x])
    assert kind == "line"
    assert np.allclose(xy[:, 1], np.polyval(np.polyfit(*ticks_y.T, 1), values), atol=0.2)
    assert np.allclose(xy[:, 0], np.polyval(np.polyfit(*ticks_x.T, 1), range(4)), atol=0.2)
    assert ((xy >= 0) & (xy <= [WIDTH, HEIGHT])).all()
    assert drawn.data["curves"][0]["y"] == values
    assert drawn.last == [(0, "a", "11")]


def test_what_is_not_finite_is_a_gap_and_is_counted() -> None:
    drawn = chart("x/y", [Curve(0, "a", points(1.0, 2.0, math.nan, 3.0, math.inf, 4.0, 5.0))])
    ((_, _, path),) = drawn.paths
    assert path.count("M") == 3
    assert drawn.notes == ["a: 2 values are not finite"]
    assert "nan" not in str(drawn.paths) + str(drawn.ticks_y)


@pytest.mark.parametrize(
    "values", [[math.nan, math.nan], [2.0, 2.0], [0.0, 0.0], [1e-9, 2e-9], [-1.0, -3.0], [1e12, 3e12]]
)
def test_any_range_has_an_axis(values: list[float]) -> None:
    drawn = chart("x/y", [Curve(0, "a", points(*values))])
    places = [y for y, _ in drawn.ticks_y]
    assert places
    assert all(0 <= y <= HEIGHT for y in places)
    assert len({label for _, label in drawn.ticks_y}) == len(places)


def test_a_spike_survives_the_thinning() -> None:
    values = np.sin(np.arange(10_000) / 500)
    values[4321] = 9.0
    values[77] = -9.0
    thin = thinned(points(*values), 200)
    assert len(thin) <= 202
    assert {4321, 77, 0, 9999} <= {p.step for p in thin}
    assert [p.step for p in thin] == sorted({p.step for p in thin})


def test_smoothing_is_a_centred_mean() -> None:
    values = np.random.default_rng(0).normal(size=150)
    smooth = [p.value for p in smoothed(points(*values))]
    half = 5
    expected = [values[i - (r := min(half, i, 149 - i)) : i + r + 1].mean() for i in range(150)]
    assert np.allclose(smooth, expected)


def test_only_a_noisy_curve_gets_a_running_mean() -> None:
    rng = np.random.default_rng(0)
    course = np.concatenate([np.linspace(0, 1, 10), np.cos(np.linspace(0, np.pi, 90))])  # warm-up and decay
    kinds = [
        [kind for _, kind, _ in chart("m", [Curve(0, "a", points(*v))]).paths]
        for v in (course, course + rng.normal(size=100))
    ]
    assert kinds == [["line"], ["raw", "line"]]


@pytest.mark.parametrize(
    ("low", "high", "share", "labels"),
    [
        (0, 10, False, ["0", "2", "4", "6", "8", "10"]),
        (0.74, 0.8, True, ["74 %", "76 %", "78 %", "80 %"]),
        (0, 0.003, False, ["0.000", "0.001", "0.002", "0.003"]),
        (0, 1, False, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-1, 0.1, False, ["-1.00", "-0.75", "-0.50", "-0.25", "0.00"]),
        (0, 50_000, False, ["0", "10,000", "20,000", "30,000", "40,000", "50,000"]),
    ],
)
def test_ticks_are_round(low: float, high: float, share: bool, labels: list[str]) -> None:
    assert [label for _, label in ticks(low, high, 5, share)] == labels


def test_numbers() -> None:
    shown = [number(v) for v in (0.123456, 1234.5, math.nan, math.inf, -math.inf)]
    assert shown == ["0.1235", "1,234", "NaN", "∞", "-∞"]
    assert number(0.7983, share=True) == "79.8 %"


def test_which_metrics_get_a_chart_and_where() -> None:
    both = points(1.0, 2.0)
    metrics = {
        "train/loss": both,
        "val/knn_top1": both,
        "perf/step_time": both,
        "data/broken_images": points(0.0),
        "val/once": points(0.5),
        "baseline/raw_pixels_knn_top1": points(0.79),
        "eval/linear_top1": both,
    }
    learned, fast = charts([("a", metrics), ("b", {"train/loss": both, "val/other": both})])
    assert [c.metric for c in learned] == ["train/loss", "val/knn_top1", "val/other"]
    assert [c.metric for c in fast] == ["perf/step_time"]
    assert [run for run, _, _ in learned[0].last] == [0, 1]
    assert [run for run, _, _ in learned[2].last] == [1], "a run keeps its colour"
    rule = learned[1].rule
    assert rule is not None
    assert rule[1] == "raw pixels 79.0 %"
