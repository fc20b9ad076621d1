"""A report of one run or several: one HTML file with numbers, curves, recipe, and what the network sees and knows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_ray.console import Console
from ssl_ray.errors import UserError
from ssl_ray.trained.report.gather import Subject, find
from ssl_ray.trained.report.page import Reported, page
from ssl_ray.trained.report.seen import look

MOST = 8
"""Runs of one page: so many colours can be told apart."""
_ONE, _SEVERAL = "report.html", "comparison.html"


@dataclass(frozen=True)
class Request:
    """What the user asked for; fields are the arguments and options of `ssl-ray report`."""

    runs: Sequence[str]
    out: Path | None = None
    storage: str = "runs"
    images: int | None = None
    pictures: bool = True
    as_json: bool = False


def report(request: Request, console: Console) -> dict[str, Any]:
    """Writes the page, puts it beside the runs in MLflow, and says where it is. Returns what `--json` prints.

    Raises UserError for a run that is not there and a place that cannot be written.
    """
    if len(request.runs) > MOST:
        raise UserError(f"report: {len(request.runs)} runs; a page has room for {MOST}")
    subjects = list({s.run.run_id: s for s in (find(run, request.storage) for run in request.runs)}.values())
    out = request.out or _default(subjects)
    if not out.parent.is_dir():
        raise UserError(f"out: {str(out.parent)!r} is no folder; make it first")
    html = page([_reported(subject, len(subjects), request, console) for subject in subjects])
    try:
        out.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"out: {str(out)!r} cannot be written: {error.strerror}; give another --out"
        ) from error
    for subject in subjects:
        try:
            subject.history.attach(subject.run.run_id, out, "report")
        except UserError as error:
            console.warn(str(error))
        for note in subject.notes:
            console.warn(f"{subject.run.name}: {note}")
    said = {
        "report": str(out.absolute()),
        "bytes": len(html.encode()),
        "runs": [s.run.name for s in subjects],
        "notes": {s.run.name: s.notes for s in subjects if s.notes},
    }
    if request.as_json:
        console.json_line(said)
    else:
        console.print(f"wrote {out} ({len(html.encode()) / 1e6:.1f} MB); open it in a browser")
    return said


def _reported(subject: Subject, runs: int, request: Request, console: Console) -> Reported:
    from ssl_ray.trained.report.seen import Seen

    console.detail(f"{subject.run.name}: reading its metrics")
    curves = subject.curves()
    console.detail(f"{subject.run.name}: making pictures")
    return Reported(subject, curves, look(subject, runs, request.images) if request.pictures else Seen())


def _default(subjects: Sequence[Subject]) -> Path:
    """In the first run's folder; in this one where that is gone or in an object store."""
    first = subjects[0]
    local = first.folder.local if first.folder is not None else None
    name = _ONE if len(subjects) == 1 else _SEVERAL
    if local is not None:
        return local / name
    return Path(f"{''.join(c if c.isalnum() or c in '._-' else '_' for c in first.run.name)}-{name}")
