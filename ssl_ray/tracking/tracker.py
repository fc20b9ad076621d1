"""Logging to a run: a `Tracker`, and `NoTracker` with the same methods for what is not tracked."""

import posixpath
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, SupportsFloat, TypeAlias

from ssl_ray.errors import UserError
from ssl_ray.redact import redact
from ssl_ray.tracking.client import connect
from ssl_ray.tracking.outbox import Outbox, logger
from ssl_ray.tracking.records import (
    ARTIFACTS_FILE,
    METRICS_FILE,
    METRICS_PER_BATCH,
    Artifact,
    Metric,
    Model,
    Record,
    send,
)
from ssl_ray.tracking.store import require
from ssl_ray.tracking.target import TrackingTarget

if TYPE_CHECKING:
    from torch import Tensor, nn


class Tracker:
    """Logs to one run without ever blocking or stopping the caller. Use as a context manager, or call `close`.

    Metrics and artifacts wait in two queues, each emptied by its own thread; MLflow is imported there. When the store
    is away they are kept in the run's folder and delivered on its return.

    A resumed run logs again the steps between its checkpoint and the kill. MLflow cannot replace a metric: it keeps
    both values of such a step, told apart by their timestamps.

    again: when what could not be delivered will be, for the message; None where nobody does it. undelivered: how many
    metrics and artifacts MLflow had not taken when this was closed.
    """

    undelivered = 0

    def __init__(
        self, target: TrackingTarget, *, interval: float = 2.0, again: str | None = "when the run is resumed"
    ) -> None:
        self.target, self._again = target, again
        self._folder = Path(target.folder)
        self._names: set[str] = set()
        where = redact(target.uri)
        self._metrics = Outbox(
            *("metrics", where, _sender(target), self._folder / METRICS_FILE),
            batch=METRICS_PER_BATCH,
            interval=interval,
        )
        self._artifacts = Outbox(
            *("artifacts", where, _sender(target), self._folder / ARTIFACTS_FILE), batch=1, interval=interval
        )

    def log(self, metrics: Mapping[str, SupportsFloat], step: int, timestamp: int | None = None) -> None:
        """Records the metrics of a step: Python, NumPy or torch scalars. Takes microseconds and does not block.

        timestamp: milliseconds since 1970, now unless given. MLflow keeps NaN, and an infinity as the largest float.
        Raises UserError for a name that MLflow does not take or a value that is not a scalar.
        """
        timestamp = time.time_ns() // 1_000_000 if timestamp is None else timestamp
        for name, value in metrics.items():
            if name not in self._names:
                _check_name(name)
                self._names.add(name)
            self._metrics.put(Metric(name, _number(name, value), timestamp, int(step)))

    def log_artifact(self, path: str | Path, artifact_path: str = "") -> None:
        """Queues a local file or folder for `artifact_path`; it must stay in place until it is delivered."""
        self._artifacts.put(Artifact(str(Path(path).absolute()), artifact_path))

    def log_text(self, text: str, artifact_file: str) -> None:
        """Writes text to `artifact_file` in the run's folder and queues it as the artifact of that name."""
        self.log_bytes(text.encode(), artifact_file)

    def log_bytes(self, content: bytes, artifact_file: str) -> None:
        """`log_text` for the content of any file, such as an encoded image."""
        file = self._local(artifact_file)
        file.write_bytes(content)
        self.log_artifact(file, posixpath.dirname(artifact_file))

    def log_figure(self, figure: Any, artifact_file: str) -> None:
        """Saves a matplotlib figure to `artifact_file` in the run's folder and queues it under that name."""
        file = self._local(artifact_file)
        figure.savefig(file)
        self.log_artifact(file, posixpath.dirname(artifact_file))

    def log_model(self, module: "nn.Module", example_input: "Tensor", name: str, step: int = 0) -> None:
        """Saves a module and queues it as the run's model `name`; see `save_model`.

        `mlflow.pytorch.load_model("runs:/<run id>/<name>")` opens it.
        """
        from ssl_ray.tracking.model import save_model

        token = uuid.uuid4().hex
        folder = self._folder / "models" / f"{name}-{token}"
        save_model(module, example_input, folder)
        self._artifacts.put(Model(str(folder), name, int(step), token))

    def flush(self, timeout: float = 2.0) -> bool:
        """Makes sure that a kill loses nothing logged so far; worth a call before a checkpoint.

        Waits for metrics at most `timeout` seconds, and not at all during an outage or for artifacts; what is not
        delivered by then is written to the run's folder. Returns whether everything was delivered.
        """
        delivered = self._artifacts.flush(0)
        return self._metrics.flush(timeout) and delivered

    def close(self, deadline: float | None = None) -> None:
        """Delivers what waits, for at most `deadline` seconds; keeps the rest in the run's folder and says so.

        By default 30 seconds, for the first use of a store takes long on a busy machine; 10 during an outage.
        """
        if deadline is None:
            deadline = 10.0 if self._metrics.away or self._artifacts.away else 30.0
        until = time.monotonic() + deadline
        (metrics, lost), (artifacts, lost_too) = self._metrics.close(until), self._artifacts.close(until)
        lost += lost_too
        self.undelivered = metrics + artifacts + lost
        if metrics or artifacts:
            logger.warning(
                "MLflow at %s did not take %d metrics and %d artifacts; they are kept in %s/*-undelivered.jsonl%s",
                *(redact(self.target.uri), metrics, artifacts, self._folder),
                f" and are delivered {self._again}" if self._again else "",
            )
        if lost:
            logger.warning(
                "MLflow at %s did not take %d metrics and artifacts, nor could they be kept in %s: they are lost",
                *(redact(self.target.uri), lost, self._folder),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _local(self, artifact_file: str) -> Path:
        file = self._folder / "artifacts" / artifact_file
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


class NoTracker:
    """Takes every call of a `Tracker` and does nothing."""

    undelivered = 0

    def log(self, metrics: Mapping[str, SupportsFloat], step: int, timestamp: int | None = None) -> None:
        """Nothing."""

    def log_artifact(self, path: str | Path, artifact_path: str = "") -> None:
        """Nothing."""

    def log_text(self, text: str, artifact_file: str) -> None:
        """Nothing."""

    def log_bytes(self, content: bytes, artifact_file: str) -> None:
        """Nothing."""

    def log_figure(self, figure: Any, artifact_file: str) -> None:
        """Nothing."""

    def log_model(self, module: "nn.Module", example_input: "Tensor", name: str, step: int = 0) -> None:
        """Nothing."""

    def flush(self, timeout: float = 2.0) -> bool:
        """Nothing waits: True."""
        return True

    def close(self, deadline: float | None = None) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing."""


AnyTracker: TypeAlias = Tracker | NoTracker


def make_tracker(target: TrackingTarget | None) -> AnyTracker:
    """A `Tracker` of the target, a `NoTracker` without one."""
    return NoTracker() if target is None else Tracker(target)


def _sender(target: TrackingTarget) -> Callable[[Sequence[Record]], None]:
    client: Any = None

    def send_to_run(records: Sequence[Record]) -> None:
        nonlocal client
        require(
            target.uri
        )  # each time: on a file that was taken away meanwhile SQLite would make an empty one
        client = client or connect(target.uri)
        send(client, target, records)

    return send_to_run


def _number(name: str, value: SupportsFloat) -> float:
    try:
        # `item` also takes a tensor that requires grad, without a warning.
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise UserError(
            f"metric {name!r}: a {kind} is not a scalar; log a number, or reduce it first"
        ) from error


def _check_name(name: str) -> None:
    """MLflow's rules, kept here because one bad name would hold up a whole batch."""
    if not re.fullmatch(r"[\w\-. :/]{1,250}", name) or posixpath.normpath(name) != name or name[0] in "./":
        raise UserError(
            f"metric name {name!r} is not one that MLflow takes; allowed: up to 250 letters, digits and _ - . : / "
            "space, as in 'train/loss'"
        )
