"""Runs that MLflow knows: chosen by what a user asks for, put into order, compared."""

import math
import operator
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ssl_ray.console import Cell, duration, percent
from ssl_ray.errors import UserError, nearest
from ssl_ray.tracking import PastRun

STATUSES = ("finished", "running", "failed", "killed", "scheduled")
KNN, LOSS = "val/knn_top1", "train/loss"
_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_CONDITION = re.compile(r"\s*(?P<key>[^<>=!]+?)\s*(?P<op>>=|<=|!=|=|>|<)\s*(?P<value>.+?)\s*")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
}
# Of these a small value is the good one.
_LOWER_IS_BETTER = ("loss", "step_time", "data_wait", "broken", "error")


@dataclass(frozen=True)
class Filter:
    """Which runs. algorithm: the recipe's name. data: part of the data set's name or address.

    since: 30m, 12h, 2d, 1w or a date. where: "val/knn_top1>0.7", "training.epochs=20": a metric's last value or a
    parameter against a value; all must hold.
    """

    algorithm: str | None = None
    status: str | None = None
    data: str | None = None
    since: str | None = None
    where: Sequence[str] = ()

    def __call__(self, runs: Sequence[PastRun], now: float | None = None) -> list[PastRun]:
        """Those of the runs that pass. Raises UserError for what no run could pass, with the nearest that one does."""
        if self.status is not None and self.status not in STATUSES:
            raise UserError(f"--status: {self.status!r} is none; {nearest(self.status, STATUSES)}")
        since = None if self.since is None else _since(self.since, time.time() if now is None else now)
        conditions = [_condition(text, runs) for text in self.where]
        if self.algorithm is not None and runs:
            _known("--algorithm", self.algorithm, {r.algorithm for r in runs if r.algorithm})
        return [
            run
            for run in runs
            if (self.algorithm is None or run.algorithm == self.algorithm)
            and (self.status is None or run.status == self.status)
            and (self.data is None or self.data in run.data or self.data in run.source)
            and (since is None or (run.start or 0) >= since)
            and all(condition(run) for condition in conditions)
        ]


def order(runs: Sequence[PastRun], key: str, descending: bool | None = None) -> list[PastRun]:
    """The runs by `started`, `name`, `duration` or a metric; those without it, or without a finite one, at the end.

    descending: by default the newest, the longest and the better metric come first. Raises UserError for another key.
    """
    fixed: dict[str, Callable[[PastRun], Any]] = {
        "started": lambda r: r.start,
        "name": lambda r: r.name,
        "duration": lambda r: r.seconds,
    }
    if key in fixed:
        value, down = fixed[key], key != "name"
    else:
        _known("--sort", key, {*fixed, *(m for r in runs for m in r.metrics)})
        value, down = lambda r: r.metrics.get(key), not lower_is_better(key)
    having = [r for r in runs if (v := value(r)) is not None and (isinstance(v, str) or math.isfinite(v))]
    kept = {id(r) for r in having}
    ranked = sorted(having, key=value, reverse=down if descending is None else descending)
    return ranked + [r for r in runs if id(r) not in kept]


def best(runs: Sequence[PastRun], metric: str, lowest: bool | None = None) -> list[PastRun]:
    """The runs whose last value of the metric is finite, by it, the best first.

    lowest: whether a small value is the good one, told from the metric's name by default. Raises UserError when no run
    has such a metric, or none a finite value of it.
    """
    _known("--metric", metric, {m for r in runs for m in r.metrics})
    down = not (lower_is_better(metric) if lowest is None else lowest)
    having = [r for r in runs if math.isfinite(r.metrics.get(metric, math.nan))]
    if not having:
        raise UserError(
            f"--metric: {metric} is not finite in any run: they have diverged; `ssl-ray runs` lists them, another "
            "--metric may tell more"
        )
    return order(having, metric, descending=down)


def lower_is_better(metric: str) -> bool:
    """Whether a small value of this metric is the good one, as far as its name tells."""
    return any(word in metric.lower() for word in _LOWER_IS_BETTER)


def nested(runs: Sequence[PastRun]) -> list[tuple[int, PastRun]]:
    """(depth, run), every run after the search that it is a trial of; one whose search is not among them is at 0."""
    present = {r.run_id for r in runs}
    below: dict[str, list[PastRun]] = {}
    for r in runs:
        if r.parent in present and r.parent != r.run_id:
            below.setdefault(str(r.parent), []).append(r)
    placed: list[tuple[int, PastRun]] = []

    def place(run: PastRun, depth: int) -> None:
        placed.append((depth, run))
        for trial in below.get(run.run_id, ()):
            place(trial, depth + 1)

    for r in runs:
        if r.parent not in present or r.parent == r.run_id:
            place(r, 0)
    return placed


COLUMNS = (
    "run",
    "status",
    "algorithm",
    "data",
    "epochs",
    "kNN %",
    "loss",
    "images/s",
    "time",
    "started",
    "id",
)


def row(run: PastRun, depth: int = 0) -> tuple[Cell, ...]:
    """A run as a line of a table with `COLUMNS`."""
    return (
        "  " * depth + run.name,
        run.status,
        run.algorithm or None,
        run.data or None,
        run.params.get("training.epochs"),
        None if (top1 := run.metrics.get(KNN)) is None else percent(top1),
        _shown(run.metrics.get(LOSS), "{:.4g}"),
        _shown(run.metrics.get("perf/images_per_second"), "{:,.0f}"),
        None if run.seconds is None else duration(run.seconds),
        when(run.start),
        run.run_id[:8],
    )


def facts(run: PastRun) -> list[tuple[str, str]]:
    """(what, value) of a run: where it ran, on what, with which versions; what is not known is left out."""
    tags = run.tags
    dirty = " (with changes)" if tags.get("git.dirty") == "true" else ""
    known = [
        ("status", run.status),
        ("algorithm", run.algorithm),
        (
            "data",
            " ".join(filter(None, (run.data, f"({run.source})" if run.source not in ("", run.data) else ""))),
        ),
        ("data digest", run.digest or tags.get("dataset_digest", "")),
        ("started", when(run.start) or ""),
        ("took", "" if run.seconds is None else duration(run.seconds)),
        ("workers", tags.get("world_size", "")),
        ("host", tags.get("host", "")),
        ("user", tags.get("mlflow.user", "")),
        (
            "commit",
            tags.get("mlflow.source.git.commit", "")[:12] + dirty
            if "mlflow.source.git.commit" in tags
            else "",
        ),
        ("ssl-ray", tags.get("ssl_ray.version", "")),
        ("torch", tags.get("torch", "")),
        ("python", tags.get("python", "")),
        ("folder", tags.get("ssl_ray.folder", "")),
        ("MLflow run", run.run_id),
    ]
    return [(name, value) for name, value in known if value]


def differing_params(runs: Sequence[PastRun]) -> dict[str, list[str | None]]:
    """Parameter -> its value in each run, for those that are not the same in all; None where a run has none."""
    names = dict.fromkeys(name for r in runs for name in r.params)
    values = {name: [r.params.get(name) for r in runs] for name in sorted(names)}
    return {name: v for name, v in values.items() if len(set(v)) > 1}


def as_json(run: PastRun) -> dict[str, Any]:
    """All that is known of a run, for `--json`."""
    return {
        "run": run.name,
        "run_id": run.run_id,
        "parent_run_id": run.parent,
        "status": run.status,
        "algorithm": run.algorithm or None,
        "data": run.data or None,
        "source": run.source or None,
        "digest": run.digest or None,
        "started": run.start,
        "ended": run.end,
        "seconds": run.seconds,
        "folder": run.tags.get("ssl_ray.folder"),
        "metrics": dict(run.metrics),
        "params": dict(run.params),
        "tags": dict(run.tags),
    }


def when(seconds: float | None) -> str | None:
    """Local date and minute."""
    return None if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _shown(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)


def _known(option: str, value: str, allowed: set[str]) -> None:
    if value not in allowed:
        raise UserError(f"{option}: no run has {value!r}; {nearest(value, allowed)}")


def _since(text: str, now: float) -> float:
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip()):
        return now - float(found[1]) * _UNITS[found[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError as error:
        raise UserError(
            f"--since: {text!r} is no time; write 30m, 12h, 2d, 1w or a date such as 2026-01-31"
        ) from error


def _condition(text: str, runs: Sequence[PastRun]) -> Callable[[PastRun], bool]:
    """The test that "key>value" stands for: numbers as numbers, `=` and `!=` also of texts."""
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise UserError(f"--where {text!r}: write a metric or parameter, one of > >= < <= = !=, and a value")
    key, wanted, compare = found["key"], found["value"], _OPERATORS[found["op"]]
    if runs:
        _known("--where", key, {name for r in runs for name in (*r.metrics, *r.params)})
    number = _float(wanted)
    if number is None and found["op"] not in ("=", "!="):
        raise UserError(f"--where {text!r}: {wanted!r} is not a number; {found['op']} compares numbers")

    def holds(run: PastRun) -> bool:
        value = run.metrics.get(key, run.params.get(key))
        if value is None:
            return False
        has = _float(value)
        if number is not None and has is not None:
            return compare(has, number)
        return found["op"] in ("=", "!=") and compare(str(value), wanted)

    return holds


def _float(text: str | float) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
