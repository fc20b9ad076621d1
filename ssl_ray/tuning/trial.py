"""A trial: the same training as `pretrain`'s, in a folder and an MLflow run of its own, judged while it trains.

It is a class of Ray Tune's and no function because a class is asked to clean up, and waited for, when its trial is
stopped: the training ends with a checkpoint, Ray Train gives back its workers, the MLflow run ends. Of a function
trainable Tune kills the process; the workers' placement group is then left to an actor that needs the dashboard.
"""

import contextlib
import io
import json
import math
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ray import tune

from ssl_ray.console import Console
from ssl_ray.data.source import Dataset
from ssl_ray.errors import UserError
from ssl_ray.evaluation.alarm import collapses
from ssl_ray.recipe import Recipe, overrides
from ssl_ray.resolve import resolve
from ssl_ray.tracking import TrackedRun, TrackingSettings, TrackingTarget
from ssl_ray.training import local_cluster
from ssl_ray.training.cluster import Resources
from ssl_ray.training.control import Control
from ssl_ray.training.folder import RunFolder
from ssl_ray.training.mend import mend
from ssl_ray.training.notices import Notices
from ssl_ray.training.preflight import preflight
from ssl_ray.training.pretrain import train_in
from ssl_ray.tuning.objective import METRIC, TIME, Objective
from ssl_ray.workers import Workers

# Tune can stop a trial only between two results: without news for so long, the last one is sent again.
HEARTBEAT_S = 5.0
# Stopping takes a look of the run, a checkpoint and the end of its workers.
STOP_S = 300.0
POINTER = "trial.json"


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a search have in common.

    recipe: not resolved, for a trial's values come first. storage: the search's folder, in which each trial has its
    own. record: of each run's folder. parent: id of the search's MLflow run. interval: epochs between checkpoints where
    trials take over from one another (PBT), else None. alone: whether trials run one at a time.
    """

    recipe: Recipe
    dataset: Dataset
    storage: str
    record: dict[str, Any]
    settings: TrackingSettings
    parent: str
    workers: int
    resources: Resources
    objective: Objective
    interval: int | None = None
    alone: bool = False
    verbose: bool = False


def trial_name(trial_id: str) -> str:
    """A trial's name, and its folder's: "trial-00003"; a searcher's trials have letters instead of a number."""
    return f"trial-{trial_id.split('_')[-1]}"


def refuse_not_finite(evaluations: Sequence[Mapping[str, float]], objective: Objective) -> None:
    """Raises UserError if the last of a trial's evaluations has no score: no scheduler can place such a trial."""
    if evaluations and not math.isfinite(evaluations[-1][objective.key]):
        said = "; ".join(str(alarm) for alarm in collapses(evaluations) if alarm.kind == "not finite")
        raise UserError(said or f"{objective.name} is not finite at step {evaluations[-1]['step']:g}")


def trial_recipe(recipe: Recipe, values: Mapping[str, Any], dataset: Dataset, workers: int) -> Recipe:
    """The resolved recipe of a trial, as `--set` would make it. Raises UserError."""
    held_out = dataset.val is not None
    recipe = resolve(overrides(recipe, values), dataset.train.info, held_out=held_out).recipe
    Workers.exactly(workers).sizes(recipe)
    return recipe


class Trial(tune.Trainable):  # type: ignore[misc]
    """See the module. `step` returns with each online evaluation."""

    def setup(self, config: dict[str, Any], job: TrialJob) -> None:
        """Called by Tune in a fresh process; the training begins with the first `step`."""
        local_cluster.set_environment()
        self.job = job
        self.values = dict(config)
        self.name = trial_name(self.trial_id)
        self.news: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()
        self.said: queue.Queue[str] = queue.Queue()
        self.control = Control(self._evaluated)
        self.thread: threading.Thread | None = None
        self.take_over: dict[str, Any] | None = None
        self.evaluations: list[dict[str, float]] = []
        self.summary: dict[str, Any] = {}
        self.folder = self._latest_generation()

    def step(self) -> dict[str, Any]:
        """Waits for an evaluation, the end, or a heartbeat.

        A mistake in the recipe and a run that diverges, its gradient or its features no longer finite, are an end like
        another, with a cause: starting again would meet the same. Whatever else goes wrong is raised, for `--resume` to
        try again.
        """
        try:
            if self.thread is None:
                self._begin()
            news = self.news.get(timeout=HEARTBEAT_S)
            if isinstance(news, BaseException):
                raise news
            refuse_not_finite(self.evaluations, self.job.objective)
        except queue.Empty:
            return self._result(heartbeat=True)
        except UserError as error:
            result = self._result(done=True, ended="failed", cause=str(error))
            result.pop(METRIC, None)
            return result
        return self._result(done=True, ended="finished") if "status" in news else self._result()

    def cleanup(self) -> None:
        """Stops the training and waits for the end of its workers."""
        self.control.stop.set()
        if self.thread is not None:
            self.thread.join(STOP_S)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A pointer to the run's checkpoint of the last evaluation's step; called by PBT."""
        wanted = int(self.evaluations[-1]["step"]) if self.evaluations else 0
        assert self.thread is not None
        found = None
        while found is None and self.thread.is_alive():
            with contextlib.suppress(UserError):  # Ray Train is writing its list anew
                found = self.folder.latest_checkpoint(wanted)
            self.thread.join(0.2)
        pointer = {"trial": self.name, "checkpoint": found, "evaluations": self.evaluations}
        (Path(checkpoint_dir) / POINTER).write_text(json.dumps(pointer))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Begins where another trial was; its own pointer leaves it where it is."""
        pointer = json.loads((Path(checkpoint_dir) / POINTER).read_text())
        known = self.folder.record() if self.folder.exists() else {}
        if pointer["trial"] == self.name or pointer["checkpoint"] in (None, known.get("init_from")):
            return
        self.take_over = pointer
        self.folder = self._generation(self._count_generations())

    def _begin(self) -> None:
        """Prepares the run in this thread, and starts it in another."""
        record = self.job.record | {"name": self.folder.name}
        before = self.folder.record() if self.folder.exists() else {}
        self.evaluations = list(before.get("evaluations", []))
        if self.take_over is not None:
            first = self._generation(0)
            ids = (
                {k: v for k, v in first.record().items() if k.startswith("mlflow")} if first.exists() else {}
            )
            record |= ids | {"init_from": self.take_over["checkpoint"]}
            self.evaluations = self.take_over["evaluations"]
        record |= before | {"data": record["data"]}
        if "summary" in record:  # it had ended, and Tune had not heard of it
            self.news.put(record["summary"])
        recipe = self._recipe()
        mend(self.folder, self._console().warn)
        begun = self.folder.exists() and self.folder.latest_checkpoint() is not None
        preflight(recipe, (self.job.workers,), from_checkpoint=begun or record.get("init_from") is not None)
        self.thread = threading.Thread(target=self._train, args=(recipe, record), daemon=True)
        self.thread.start()

    def _console(self) -> Console:
        """What a trial has to say goes to the search."""
        return Console("quiet", out=_Lines(self.said), err=_Lines(self.said))

    def _recipe(self) -> Recipe:
        recipe = trial_recipe(self.job.recipe, self.values, self.job.dataset, self.job.workers)
        if self.job.interval is not None:
            batch = recipe.training.global_batch_size
            steps = self.job.interval * max(1, self.job.dataset.train.info.num_samples // batch)
            recipe = overrides(recipe, {"training.checkpoint_steps": steps})
        return recipe

    def _train(self, recipe: Recipe, record: dict[str, Any]) -> None:
        """The thread: trains to the end, and passes on what came of it."""
        job = self.job
        try:
            if "summary" in record:
                return
            settings = replace(
                job.settings, folder=str(self.folder.local or f"{job.settings.folder}/{self.folder.name}")
            )
            console = self._console()
            try:
                with Notices(console.warn):
                    self.summary = train_in(
                        self.folder,
                        recipe,
                        job.dataset,
                        record,
                        workers=Workers.exactly(job.workers),
                        resources=job.resources,
                        settings=settings,
                        console=console,
                        verbose=job.verbose,
                        tags={"mlflow.parentRunId": job.parent, "search.trial": self.name}
                        | {f"search.{path}": str(value) for path, value in self.values.items()},
                        control=self.control,
                        init_from=record.get("init_from"),
                        alone=job.alone,
                    )
                refuse_not_finite(self.evaluations, job.objective)
                if self.summary["status"] == "collapsed":  # evaluation.on_collapse=stop
                    raise UserError("; ".join(self.summary["alarms"]))
            except UserError as error:
                if "mlflow_run_id" in record:
                    _tag(settings, record, {"search.status": "failed", "search.cause": str(error)})
                raise
            _tag(settings, record, {"search.status": self.summary["status"]})
            if self.summary["status"] == "finished":
                self.news.put(self.summary)
        except BaseException as error:
            self.news.put(error)

    def _evaluated(self, evaluation: dict[str, float]) -> None:
        known = [e for e in self.evaluations if e["step"] < evaluation["step"]]
        self.evaluations = [*known, evaluation]
        self.folder.update(evaluations=self.evaluations)
        self.news.put(evaluation)

    def _result(
        self,
        *,
        done: bool = False,
        heartbeat: bool = False,
        ended: Literal["finished", "failed"] | None = None,
        cause: str | None = None,
    ) -> dict[str, Any]:
        said = []
        while not self.said.empty():
            said.append(self.said.get())
        result: dict[str, Any] = {
            TIME: 0.0,
            "done": done,
            "heartbeat": heartbeat,
            "ended": ended,  # for "done" is also what Tune calls a trial that its scheduler stops
            "cause": cause,
            "said": said,
            "run": self.folder.name,
            "curve": [[e["epoch"], e[self.job.objective.key]] for e in self.evaluations],
        }
        if self.evaluations:
            last = self.evaluations[-1]
            result |= {TIME: last["epoch"], METRIC: last[self.job.objective.key]}
            if not math.isfinite(result[METRIC]):
                del result[METRIC]
        return result

    def _generation(self, number: int) -> RunFolder:
        """The trial's run; each time it takes over from another trial it gets a new one."""
        return RunFolder.at(self.job.storage, f"{self.name}{f'-g{number}' if number else ''}")

    def _count_generations(self) -> int:
        number = 0
        while self._generation(number).exists():
            number += 1
        return number

    def _latest_generation(self) -> RunFolder:
        return self._generation(max(0, self._count_generations() - 1))


class _Lines(io.StringIO):
    """A stream that hands on lines; what a run has to say travels with the trial's next result."""

    def __init__(self, lines: "queue.Queue[str]") -> None:
        super().__init__()
        self.lines = lines

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if said := line.removeprefix("warning: ").strip():
                self.lines.put(said)
        return len(text)


def _tag(settings: TrackingSettings, record: dict[str, Any], tags: dict[str, str]) -> None:
    """Tags of a trial's ended MLflow run; if the store is away they are lost, and nothing else."""
    target = TrackingTarget(
        settings.uri, record["mlflow_experiment_id"], record["mlflow_run_id"], settings.folder
    )
    try:
        TrackedRun(target).set_tags(tags)
    except Exception:
        return
