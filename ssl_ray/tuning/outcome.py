"""What became of each trial, as a search knows it: for the console, MLflow, the table and the plot."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ssl_ray.paths import format_value

Status = Literal["waiting", "running", "finished", "stopped", "interrupted", "failed"]


@dataclass(frozen=True)
class Outcome:
    """name: the trial's. run: its folder's. values: path -> value. status: waiting to begin or to go on, stopped by the
    scheduler, interrupted by Ctrl-C or the time budget. score: of the last evaluation, None before the first and where
    it is not finite. epoch: of that evaluation. curve: (epoch, score) of all that are finite. cause: why it failed.
    """

    name: str
    run: str
    values: dict[str, Any]
    status: Status
    score: float | None = None
    epoch: float = 0.0
    curve: list[tuple[float, float]] = field(default_factory=list)
    cause: str | None = None

    def say_values(self) -> str:
        """The values on one line, the last part of a path for its name."""
        return ", ".join(f"{path.rpartition('.')[2]} {show(value)}" for path, value in self.values.items())


def show(value: Any) -> str:
    """A sampled value in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else format_value(value)


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Best first. A trial that trained longer goes before one with the same score; failed ones come last."""
    return sorted(
        outcomes,
        key=lambda o: (o.status != "failed", o.score is not None, o.score or 0.0, o.epoch),
        reverse=True,
    )


def best_of(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The trial with the highest last score, among those that trained at all; None if there is none.

    A trial that was stopped early competes with what it had by then.
    """
    candidates = [o for o in ranked(outcomes) if o.status != "failed" and o.score is not None and o.epoch > 0]
    return candidates[0] if candidates else None


def table(
    outcomes: Sequence[Outcome], paths: Sequence[str], objective: str
) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table at the end, best first."""
    columns = ["trial", objective, "epochs", "status", *(path.rpartition(".")[2] for path in paths)]
    rows: list[list[Any]] = [
        [
            o.name,
            "" if o.score is None else f"{o.score:.4f}",
            f"{o.epoch:g}",
            o.status,
            *(show(o.values[path]) if path in o.values else "" for path in paths),
        ]
        for o in ranked(outcomes)
    ]
    return columns, rows
