"""A run as a store remembers it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

_LARGEST = 1e300  # MLflow keeps an infinity as the largest float
PARENT = "mlflow.parentRunId"
FOLDER = "ssl_ray.folder"
"""Tag: path or URI of the run's folder."""


@dataclass(frozen=True)
class PastRun:
    """One run as MLflow knows it.

    status: finished, running, failed, killed or scheduled. start, end: seconds since the epoch, None where unknown.
    params, tags: as text. metrics: the last value of each, without MLflow's own `system/`; NaN and infinities as they
    were logged. data, digest, source: name, digest and address of the data set it was trained on, "" if not recorded.
    """

    run_id: str
    name: str
    status: str
    start: float | None
    end: float | None
    params: Mapping[str, str] = field(repr=False)
    tags: Mapping[str, str] = field(repr=False)
    metrics: Mapping[str, float] = field(repr=False)
    data: str = ""
    digest: str = ""
    source: str = ""
    experiment_id: str = ""

    @property
    def algorithm(self) -> str:
        """The recipe's name, "" for a run that is not of ours."""
        return self.params.get("name", "")

    @property
    def parent(self) -> str | None:
        """Run id of the search that this run is a trial of."""
        return self.tags.get(PARENT)

    @property
    def seconds(self) -> float | None:
        """From its first start to its last end; None while it runs."""
        return None if self.start is None or self.end is None else self.end - self.start


def seconds(milliseconds: int | None) -> float | None:
    """MLflow's times, in our unit."""
    return None if milliseconds is None else milliseconds / 1000


def last_values(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as they were logged, without those that MLflow takes of the machine."""
    return {k: number(v) for k, v in metrics.items() if not k.startswith("system/")}


def number(value: float) -> float:
    """A metric's value as it was logged."""
    return value if abs(value) < _LARGEST or math.isnan(value) else math.copysign(math.inf, value)


def address(source: str) -> str:
    """A data set's, of the JSON that MLflow keeps as its source."""
    try:
        return str(json.loads(source).get("uri", ""))
    except (ValueError, AttributeError):
        return source
