"""From a trained network to a table of accuracies, kept in the run's folder and its MLflow entry."""

import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ssl_ray import __version__
from ssl_ray.console import Cell, Console
from ssl_ray.data.source import Dataset, open_dataset
from ssl_ray.errors import UserError, nearest
from ssl_ray.evaluation.scores import Result
from ssl_ray.tracking import (
    Tracker,
    TrackingTarget,
    default_tags,
    open_run,
    prepare,
    tracking_settings,
    why_not,
)
from ssl_ray.trained.case import Case, Choices, Means, described
from ssl_ray.trained.protocols import DEFAULT, PROBES, PROTOCOLS
from ssl_ray.trained.subject import Subject, load_subject
from ssl_ray.training.folder import RunFolder
from ssl_ray.training.notices import Notices
from ssl_ray.training.places import exists, is_own, lasting, recorded, require
from ssl_ray.training.pretrain import no_credentials
from ssl_ray.training.tracked import tracking_of


@dataclass(frozen=True)
class Request:
    """What the user asked for. Fields are the options of `ssl-ray evaluate`.

    data, columns, holdout: those of the run unless given.
    """

    subject: str
    protocols: Sequence[str] = ()
    data: str | None = None
    columns: dict[str, str | None] = field(default_factory=dict)
    holdout: float | None = None
    storage: str = "runs"
    random: bool = False
    size: int | None = None
    means: Means = field(default_factory=Means)
    choices: Choices = field(default_factory=Choices)
    as_json: bool = False


def evaluate(request: Request, console: Console) -> dict[str, Any]:
    """Judges a network by each protocol and says how good it is. Returns what `--json` prints. Raises UserError."""
    with Notices(console.warn):
        return _evaluate(request, console)


def _evaluate(request: Request, console: Console) -> dict[str, Any]:
    started = time.monotonic()
    names = list(dict.fromkeys(request.protocols or DEFAULT))
    for name in names:
        if name not in PROTOCOLS:
            raise UserError(f"evaluate: there is no protocol {name!r}; {nearest(name, PROTOCOLS)}")
    if request.choices.probe not in PROBES:
        raise UserError(
            f"probe: there is no {request.choices.probe!r}; {nearest(request.choices.probe, PROBES)}"
        )
    subject = load_subject(request.subject, request.storage, random=request.random, seed=request.choices.seed)
    data, dataset = dataset_of(subject, request.data, request.columns, request.holdout)
    _require_labels(data, dataset)
    assert dataset.val is not None
    place = remember(subject, data, dataset)
    size = request.size or subject.image_size
    width = subject.feature_width(size)
    console.print(f"{subject.source}: {width} features at {size} x {size} px")
    dataset.tell(console.print, console.warn, data)

    results: list[Result] = []
    prefix, identity = _prefix(subject, data, dataset), uuid.uuid4().hex
    with (
        _tracked(request, subject, place, size) as tracker,
        Case(
            subject,
            dataset,
            size,
            request.means,
            request.choices,
            console,
            place,
            request.storage,
            tracker.target.run_id,
            # To have it when there are results.
            meanwhile=lambda: prepare(tracker.target.uri, must_exist=True),
        ) as case,
    ):

        def summary() -> dict[str, Any]:
            return {
                "id": identity,
                **described(subject),
                "data": place,
                "image_size": size,
                "features": width,
                "train": {"images": dataset.train.info.num_samples, "digest": dataset.train.info.digest},
                "val": {"images": case.held_out.info.num_samples, "digest": case.held_out.info.digest},
                "classes": case.classes,
                "choices": asdict(request.choices),
                "results": [asdict(result) for result in results],
                "metrics": {k: v for result in results for k, v in result.metrics(prefix).items()},
                "broken": case.broken,
                "cached": case.cached,
                "mlflow_run_id": tracker.target.run_id,
                "ssl_ray": __version__,
                "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "seconds": round(time.monotonic() - started, 1),
            }

        kept = ""
        for name in names:
            before = time.monotonic()
            found = PROTOCOLS[name](case)
            results += found
            for result in found:
                tracker.log(result.metrics(prefix), step=subject.step or 0)
            # After each: what fails or is killed later takes nothing from those before it.
            kept = _keep(request, subject, summary())
            console.detail(f"{name}: {time.monotonic() - before:.1f} s")
    done = summary() | {"evaluations": kept, "undelivered": tracker.undelivered}
    _say(request, console, done, results, tracker.target)
    return done


def _prefix(subject: Subject, data: str, dataset: Dataset) -> str:
    """Of metrics: `eval/`, and the data's name where a run is judged on other data than its own."""
    if subject.folder is None or is_own(subject.folder.record(), data, dataset):
        return "eval/"
    return f"eval/{re.sub(r'[^A-Za-z0-9_.-]', '-', dataset.train.info.name)}/"


def dataset_of(
    subject: Subject, data: str | None, columns: dict[str, str | None], holdout: float | None
) -> tuple[str, Dataset]:
    """The data to look at: what the user named, else what the run was trained on, with its held-out part."""
    record = subject.folder.record() if subject.folder else {}
    if data is None and "data" not in record:
        raise UserError(
            f"data: {subject.name} is no run that says what it was trained on; give --data "
            "(fashion, digits, torchvision:NAME, a folder, Parquet, s3://...)"
        )
    given, its_own = (
        {name: column for name, column in some.items() if column is not None}
        for some in (columns, record.get("columns", {}))
    )
    theirs: dict[str, Any] = {"holdout": record.get("holdout", 0.1), **its_own, **given}
    usual: dict[str, Any] = {"holdout": 0.1, **given}
    if holdout is not None:
        theirs["holdout"] = usual["holdout"] = holdout
    uri = recorded(record) if data is None else data
    no_credentials("data", uri)
    if data is None:
        require(
            subject.name,
            uri,
            None,
            f"ssl-ray evaluate {subject.folder.name if subject.folder else subject.name}",
        )
    if data is None or ("data" in record and lasting(uri) == recorded(record)):
        return uri, open_dataset(uri, **theirs)
    if "data" in record and theirs != usual:
        # The run's own images at another place are read as it read them; their digest tells.
        with contextlib.suppress(UserError):
            dataset = open_dataset(uri, **theirs)
            if dataset.train.info.digest == record["dataset_digest"]:
                return uri, dataset
    return uri, open_dataset(uri, **usual)


def remember(subject: Subject, data: str, dataset: Dataset) -> str:
    """Where the data set lies, from any folder. The run's record says it from now on, if what it said is gone."""
    place = lasting(data)
    record = subject.folder.record() if subject.folder else {}
    if subject.folder is not None and is_own(record, data, dataset) and not exists(recorded(record)):
        subject.folder.update(data=place)
    return place


def _require_labels(data: str, dataset: Dataset) -> None:
    if dataset.train.info.num_classes is None:
        raise UserError(f"data: {data} has no labels to judge by; give labelled --data (or --label-column)")
    if dataset.val is None:
        raise UserError(
            f"data: {data} has no held-out part to judge on; give data with a val split, or a --holdout"
        )


@contextmanager
def _tracked(request: Request, subject: Subject, data: str, size: int) -> Iterator[Tracker]:
    """A tracker of the run's own MLflow entry, whose status stays as it is; without a run, of a new entry."""
    record = subject.folder.record() if subject.folder else {}
    if subject.folder is not None and "mlflow_run_id" in record:
        settings = tracking_of(subject.folder, record)
        # A folder of its own: the files of what could not be delivered may have one writer, and training may go on.
        own = os.path.join(settings.folder, "evaluations")
        target = TrackingTarget(settings.uri, record["mlflow_experiment_id"], record["mlflow_run_id"], own)
        with Tracker(target, again=f"by the next `ssl-ray evaluate` of {subject.name}") as tracker:
            yield tracker
        return
    settings = tracking_settings(_folder(request, subject).uri)
    params = described(subject) | {"data": data, "image_size": size}
    name = f"evaluate-{subject.name}"
    with open_run(settings, name=name, params=params, tags=default_tags()) as run:
        # A folder of its own, again: the next evaluation is another run, which must not get what this one left.
        target = replace(run.target, folder=os.path.join(settings.folder, run.run_id))
        with Tracker(target, again=None) as tracker:
            yield tracker


def _folder(request: Request, subject: Subject) -> RunFolder:
    """Where results are kept: the run's folder, else `<storage>/evaluations/<subject>`."""
    if subject.folder is not None:
        return subject.folder
    return RunFolder.at(os.path.join(request.storage, "evaluations"), subject.name)


def _keep(request: Request, subject: Subject, summary: dict[str, Any]) -> str:
    """Puts the summary among the folder's evaluations. Returns the file."""
    return _folder(request, subject).keep_evaluation(json.loads(json.dumps(summary)))


def _say(
    request: Request,
    console: Console,
    summary: dict[str, Any],
    results: Sequence[Result],
    target: TrackingTarget,
) -> None:
    if request.as_json:
        console.json_line(summary)
        return
    shown = {"top1": "top-1 %", "top5": "top-5 %", "map": "mAP %", "class_mean": "class mean %"}
    used = [name for name in shown if any(name in result.scores for result in results)]

    def cell(result: Result, name: str) -> Cell:
        if name not in result.scores:
            return None
        spread = f" ± {100 * result.std[name]:.2f}" if name in result.std else ""
        return f"{100 * result.scores[name]:.2f}{spread}"

    console.table(
        f"{summary['subject']} on {summary['data']}: held-out images",
        ["protocol", "setting", *(shown[name] for name in used)],
        [(r.protocol, r.setting, *(cell(r, name) for name in used)) for r in results],
    )
    if not summary["undelivered"]:
        console.print(f"kept in {summary['evaluations']}, and in MLflow's run {target.run_id}")
        return
    console.print(
        f"kept in {summary['evaluations']}, and in {target.folder} for MLflow's run {target.run_id}"
    )
    console.warn(f"MLflow has not got these values: {why_not(target)}")
