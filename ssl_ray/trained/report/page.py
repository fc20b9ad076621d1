"""The page: numbers and tables from what was gathered, and the template that puts all into one file of HTML."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from ssl_ray import __version__
from ssl_ray.console import duration
from ssl_ray.tracking import Point
from ssl_ray.trained.report.charts import Chart, charts, number
from ssl_ray.trained.report.gather import Subject
from ssl_ray.trained.report.seen import Seen
from ssl_ray.trained.runs import facts, lower_is_better, when

KNN, RAW_PIXELS = "val/knn_top1", "baseline/raw_pixels_knn_top1"
EVALUATIONS = "eval/"
_SPREAD = "_std"  # ending of the metric that is the spread of the one without
_SHARES = ("top1", "top5", "accuracy", "class_mean", "map")
MOST_BYTES = 3_000_000
_LEFT_OUT = "Some pictures are left out, to keep the page small."
_PICTURED = (
    ("views", "Views as the network sees them"),
    ("masked", "Reconstructions"),
    ("neighbours", "Nearest neighbours"),
    ("map", "Map of the features"),
)
_MAP_SIDE = 500


@dataclass(frozen=True)
class Reported:
    """All of one run: what it is, its metrics over time, its pictures."""

    subject: Subject
    curves: Mapping[str, Sequence[Point]]
    seen: Seen


@dataclass(frozen=True)
class Number:
    """A row of the table of numbers. best: the run with the best value, None where none is. notes: for a tile."""

    name: str
    values: Sequence[str]
    best: int | None
    notes: Sequence[str]


def page(reports: Sequence[Reported]) -> str:
    """One HTML file that needs nothing else: styles, script and pictures are in it, and nothing in it is fetched.

    At most about `MOST_BYTES` long: pictures are left out of one that would be longer.
    """
    drawn = charts([(r.subject.run.name, r.curves) for r in reports])
    html = _page(reports, *drawn)
    while len(html) > MOST_BYTES:
        thinned = [r for r in reports if r.seen.thin()]
        if not thinned:
            break
        for r in thinned:
            if _LEFT_OUT not in r.subject.notes:
                r.subject.notes.append(_LEFT_OUT)
        html = _page(reports, *drawn)
    return html


def _page(reports: Sequence[Reported], learned: Sequence[Chart], fast: Sequence[Chart]) -> str:
    many = len(reports) > 1
    sheets: dict[str, Any] = {}
    runs = [_run(r, sheets) for r in reports]
    parts = [(part, name, "") for part, name in _PICTURED if any(run[part] for run in runs)]
    differences = [(path, values) for path, values, differs in _settings(reports) if differs]
    evaluations = _evaluations(reports)
    sections = [("numbers", "Numbers")]
    sections += [("evaluations", "Evaluations")] if evaluations else []
    sections += [("differences", "Differences")] if many else []
    sections += [("curves", "Curves")] if learned else []
    sections += [("throughput", "Throughput")] if fast else []
    short = {"views": "Views", "masked": "Reconstructions", "neighbours": "Neighbours", "map": "Map"}
    sections += [(part, short[part]) for part, _, _ in parts] + [("recipe", "Recipe")]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"breakable": _breakable, "dotted": _dotted, "together": _together}
    html: str = environment.from_string(_file("page.html")).render(
        title=" · ".join(r.subject.run.name for r in reports),
        many=many,
        runs=runs,
        numbers=_numbers(reports),
        facts=_facts(reports),
        evaluations=evaluations,
        differences=differences,
        recipe=_sections(_settings(reports)),
        learned=learned,
        fast=fast,
        spread=any(c.metric.endswith("/std") for c in learned),
        pictured=parts,
        sections=sections,
        sheets=sheets,
        css=Markup(_file("page.css")),
        js=Markup(_file("page.js")),
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
    )
    return html


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _run(report: Reported, sheets: dict[str, Any]) -> dict[str, Any]:
    """A run for the template; its sheet of thumbnails goes to `sheets`, where runs on the same images share one."""
    run, seen = report.subject.run, report.seen
    sheet_id = ""
    if seen.thumbnails is not None:
        same = [name for name, sheet in sheets.items() if sheet == seen.thumbnails]
        sheet_id = same[0] if same else f"sheet{len(sheets)}"
        sheets[sheet_id] = seen.thumbnails
    line = [
        run.algorithm,
        f"on {run.data}" if run.data else "",
        (when(run.start) or "").replace(" ", "\u00a0"),
    ]
    return {
        "name": run.name,
        "status": run.status,
        "line": ", ".join(part for part in line if part),
        "notes": report.subject.notes,
        "seen": seen,
        "sheet_id": sheet_id,
        "views": bool(seen.views or seen.preview),
        "masked": bool(seen.masked),
        "neighbours": bool(seen.asked),
        "map": bool(seen.maps),
    }


def _numbers(reports: Sequence[Reported]) -> list[Number]:
    def row(
        name: str, values: Sequence[float | None], *, share: bool = False, lower: bool | None = None
    ) -> Number:
        shown = ["" if v is None else number(v, share) for v in values]
        return Number(name, shown, _best(values, lower), [""] * len(values))

    after = [_last(r, KNN) for r in reports]
    before = [r.curves[KNN][0].value if len(r.curves.get(KNN, ())) > 1 else None for r in reports]
    pixels = [_last(r, RAW_PIXELS) for r in reports]
    rows = []
    if any(v is not None for v in after):
        gained = [
            f"{gain:+.1f} points in training" if math.isfinite(gain) else ""
            for a, b in zip(after, before, strict=True)
            for gain in [math.nan if a is None or b is None else 100 * (a - b)]
        ]
        top = row("kNN top-1", after, share=True, lower=False)
        rows.append(Number(top.name, top.values, top.best, gained))
        rows.append(row("kNN untrained", before, share=True))
        if any(v is not None for v in pixels):
            rows.append(row("kNN on raw pixels", pixels, share=True))
    steps = [r.curves["train/loss"][-1].step if r.curves.get("train/loss") else None for r in reports]
    rows.append(row("loss, last", [_last(r, "train/loss") for r in reports]))
    rows.append(
        Number(
            "epochs",
            [_epochs(r) for r in reports],
            None,
            ["" if s is None else f"{s:,} steps" for s in steps],
        )
    )
    if len(reports) > 1:
        rows.append(
            Number("steps", ["" if s is None else f"{s:,}" for s in steps], None, [""] * len(reports))
        )
    rows.append(row("images per second", [_rate(r) for r in reports], lower=False))
    rows.append(row("waiting for data", [_mean(r, "perf/data_wait") for r in reports], share=True))
    seconds = [r.subject.run.seconds for r in reports]
    rows.append(
        Number("time", ["" if s is None else duration(s) for s in seconds], None, [""] * len(reports))
    )
    workers = [r.subject.run.tags.get("world_size", "") for r in reports]
    rows.append(Number("workers", workers, None, [""] * len(reports)))
    return [r for r in rows if any(r.values)]


def _evaluations(reports: Sequence[Reported]) -> list[Number]:
    """What `ssl-ray evaluate` added to the runs: the last value of each of its metrics, with its spread."""
    names = sorted({m for r in reports for m in r.curves if m.startswith(EVALUATIONS)})
    rows = []
    for name in names:
        if name.removesuffix(_SPREAD) in names and name.endswith(_SPREAD):
            continue
        values = [_last(r, name) for r in reports]
        share = any(part in name for part in _SHARES) and all(v is None or 0 <= v <= 1 for v in values)
        spreads = [_last(r, name + _SPREAD) for r in reports]
        shown = [
            "" if v is None else number(v, share) if s is None else f"{number(v, share)} ± {number(s, share)}"
            for v, s in zip(values, spreads, strict=True)
        ]
        best = _best(values, lower_is_better(name))
        rows.append(Number(name.removeprefix(EVALUATIONS), shown, best, [""] * len(values)))
    return rows


def _best(values: Sequence[float | None], lower: bool | None) -> int | None:
    """The one run whose value is the best; None where several share it, or no value is better than another."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if lower is None or len(known) < 2:
        return None
    top = min(known) if lower else max(known)
    return list(values).index(top) if known.count(top) == 1 else None


def _last(report: Reported, metric: str) -> float | None:
    return report.curves[metric][-1].value if report.curves.get(metric) else None


def _mean(report: Reported, metric: str) -> float | None:
    points = report.curves.get(metric, ())
    return sum(p.value for p in points) / len(points) if points else None


def _rate(report: Reported) -> float | None:
    """Of the whole run where that is known, else from the logged steps: images over the time they took."""
    summary = report.subject.record.get("summary", {})
    points = [p.value for p in report.curves.get("perf/images_per_second", ()) if p.value > 0]
    rate = summary.get("images_per_second") or (len(points) / sum(1 / v for v in points) if points else None)
    return None if rate is None else round(rate, 0 if rate >= 10 else 2)


def _epochs(report: Reported) -> str:
    """Epochs done, and of how many where it ended earlier."""
    planned = report.subject.run.params.get("training.epochs", "")
    judged = report.subject.record.get("summary", {}).get("evaluations") or []
    if not judged:
        return f"of {planned}" if planned else ""
    done = f"{judged[-1]['epoch']:g}"
    return done if done == planned else f"{done} of {planned}"


def _facts(reports: Sequence[Reported]) -> list[tuple[str, list[str]]]:
    known = [dict(facts(r.subject.run)) for r in reports]
    names = dict.fromkeys(name for k in known for name in k)
    rows = [(name, [k.get(name, "") for k in known]) for name in names]
    checkpoints = [str(r.subject.record.get("summary", {}).get("checkpoint") or "") for r in reports]
    return rows + ([("checkpoint", checkpoints)] if any(checkpoints) else [])


def _settings(reports: Sequence[Reported]) -> list[tuple[str, list[str | None], bool]]:
    """(path, value in each run, whether they differ) of all recipes together."""
    values = [r.subject.values for r in reports]
    paths = dict.fromkeys(path for v in values for path in v)
    rows = [(path, [v.get(path) for v in values]) for path in paths]
    return [(path, found, len(set(found)) > 1) for path, found in rows]


def _sections(
    settings: Sequence[tuple[str, list[str | None], bool]],
) -> list[tuple[str, list[tuple[str, list[str | None], bool]]]]:
    """The settings by the part of the recipe that they belong to, those that belong to none first."""
    parts: dict[str, list[tuple[str, list[str | None], bool]]] = {}
    for path, values, differs in settings:
        part, dot, _ = path.partition(".")
        nested = dot or any(p.startswith(f"{path}.") for p, _, _ in settings)
        parts.setdefault(part if nested else "recipe", []).append((path, values, differs))
    return sorted(parts.items(), key=lambda part: part[0] in ("recipe", "paper"))


def _breakable(path: str) -> Markup:
    """A dotted path that may be broken after its dots."""
    return Markup(".<wbr>").join(escape(part) for part in path.split("."))


def _together(text: str) -> str:
    """A text in which no line ends between a number and its percent sign."""
    return text.replace(" %", "\u00a0%")


def _dotted(points: Sequence[tuple[float, float, int]]) -> list[tuple[int, str]]:
    """The points of each colour as one path of dots."""
    paths: dict[int, list[str]] = {}
    for x, y, colour in points:
        paths.setdefault(colour, []).append(f"M{_MAP_SIDE * x:.1f} {_MAP_SIDE * y:.1f}h0")
    return [(colour, "".join(parts)) for colour, parts in sorted(paths.items())]
