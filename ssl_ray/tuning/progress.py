"""Ray Tune's callback in the driver: the console, and the search's own MLflow run, while trials train."""

import math
from dataclasses import dataclass
from typing import Any

from ray import tune

from ssl_ray.console import Console, TrainProgress
from ssl_ray.tracking import AnyTracker
from ssl_ray.tuning.objective import METRIC, TIME, Objective
from ssl_ray.tuning.outcome import Outcome, Status, best_of
from ssl_ray.tuning.trial import trial_name


@dataclass(frozen=True)
class SearchStatus:
    """A reading for the bar: step counts trial-epochs, total_steps what they would be if nothing were stopped."""

    step: int
    total_steps: int
    ended: int
    trials: int
    running: int
    best: str | None

    def __str__(self) -> str:
        best = f", best {self.best}" if self.best else ""
        return (
            f"{self.ended}/{self.trials} trials ended, {self.running} running, {self.step} trial-epochs{best}"
        )


class Progress(tune.Callback):  # type: ignore[misc]
    """One line for each trial that ends or takes over from another, a bar on a terminal, best so far to MLflow.

    trials: Tune's, as of the last event; `outcomes` makes ours of them.
    """

    def __init__(
        self,
        console: Console,
        bar: TrainProgress,
        tracker: AnyTracker,
        objective: Objective,
        *,
        trials: int,
        max_epochs: int,
    ) -> None:
        self.console, self.bar, self.tracker, self.objective = console, bar, tracker, objective
        self.number, self.max_epochs = trials, max_epochs
        self.trials: list[Any] = []
        self.latest: dict[str, dict[str, Any]] = {}
        self.over: set[str] = set()  # Tune changes a trial's status after the calls below
        self.logged = 0
        self.runs: dict[str, str] = {}

    def __reduce__(self) -> Any:
        """Tune keeps callbacks in its state; this one belongs to its process, and a resumed search brings its own."""
        return tune.Callback, ()

    @property
    def outcomes(self) -> list[Outcome]:
        """All trials so far."""
        return [
            outcome_of(trial, self.latest.get(trial.trial_id), ended=trial.trial_id in self.over)
            for trial in self.trials
        ]

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """Called by Tune."""
        self.trials = trials
        name = trial_name(trial.trial_id)
        for text in result.get("said", ()):
            self.console.warn(f"{name}: {text}")
        if result.get("heartbeat") or result.get("ended"):
            return
        self.latest[trial.trial_id] = result  # Tune notes it in the trial after this call
        run = result.get("run", name)
        if self.runs.setdefault(name, run) != run:
            self.runs[name] = run
            self.bar.note(f"{name}: took over from another trial; now {outcome_of(trial).say_values()}")
        if METRIC in result:
            self.console.detail(
                f"{name}: epoch {result[TIME]:g}, {self.objective.name} {self.objective.show(result[METRIC])}"
            )
        self._refresh()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Called by Tune, also for a trial that its scheduler stopped."""
        self._ended(trials, trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """Called by Tune."""
        self._ended(trials, trial)

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        """Called by Tune."""
        self.trials = trials

    def _ended(self, trials: list[Any], trial: Any) -> None:
        self.trials = trials
        self.latest.pop(trial.trial_id, None)
        self.over.add(trial.trial_id)
        outcome = outcome_of(trial, ended=True)
        score = (
            "" if outcome.score is None else f", {self.objective.name} {self.objective.show(outcome.score)}"
        )
        text = (
            f"{outcome.name} {outcome.status} after {outcome.epoch:g} epochs{score}: {outcome.say_values()}"
        )
        if outcome.cause:
            self.console.warn(f"{outcome.name} failed: {outcome.cause} ({outcome.say_values()})")
        else:
            self.bar.note(text)
        self._refresh()

    def _refresh(self) -> None:
        outcomes = self.outcomes
        best = best_of(outcomes)
        done = sum(min(o.epoch, self.max_epochs) for o in outcomes)
        ended = sum(o.status not in ("waiting", "running") for o in outcomes)
        self.bar.update(
            SearchStatus(
                step=int(done),
                total_steps=self.number * self.max_epochs,
                ended=ended,
                trials=self.number,
                running=sum(o.status == "running" for o in outcomes),
                best=None if best is None or best.score is None else self.objective.show(best.score),
            )
        )
        metrics = {"search/trials_ended": float(ended), "search/trial_epochs": done}
        if best is not None and best.score is not None:
            metrics[f"best/{self.objective.name}"] = best.score
        self.logged += 1
        self.tracker.log(metrics, step=self.logged)


def outcome_of(trial: Any, latest: dict[str, Any] | None = None, ended: bool = False) -> Outcome:
    """What Tune knows of a trial, in our words. latest: a result newer than Tune's. ended: whatever its status says."""
    last = latest or trial.last_result or {}
    status: Status = "waiting"
    if trial.status == "ERROR":
        status = "failed"
    elif trial.status == "TERMINATED" or ended:
        status = last.get("ended") or ("stopped" if last.get("done") else "interrupted")
    elif trial.status == "RUNNING":
        status = "running"
    name = trial_name(trial.trial_id)
    judged = last.get("curve", [])
    curve = [(epoch, score) for epoch, score in judged if math.isfinite(score)]
    return Outcome(
        name=name,
        run=last.get("run", name),
        values=dict(trial.config),
        status=status,
        score=curve[-1][1] if curve and curve[-1][0] == judged[-1][0] else None,
        epoch=float(last.get(TIME, 0.0)),
        curve=curve,
        cause=cause_of(trial, last) if status == "failed" else None,
    )


def cause_of(trial: Any, last: dict[str, Any]) -> str:
    """Why a trial failed, in one line: its own words, else the last line of the traceback that Tune has."""
    if last.get("cause"):
        return str(last["cause"])
    lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
    return lines[-1] if lines else "its process ended without a word"
