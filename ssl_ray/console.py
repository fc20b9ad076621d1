"""All terminal output: a live bar on a terminal, plain lines in a pipe or a log file.

Results (text, tables, JSON) go to stdout; progress, notes and warnings go to stderr, so that `--json | jq` works
while the bar runs. Each of the two streams is looked at once, when the `Console` is made. NO_COLOR is respected.
Nothing in a text can steer the terminal: see `printable`.
"""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.console import Group, JustifyMethod
from rich.live import Live
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from ssl_ray.errors import Interrupted, StoreError, UserError
from ssl_ray.printable import printable
from ssl_ray.redact import redact

Verbosity = Literal["quiet", "normal", "verbose"]
Cell = str | int | float | None

_LINE_SECONDS = 5.0  # a log file wants a line now and then, not a thousand


@dataclass(frozen=True)
class TrainStatus:
    """One reading of a training run, small and of built-in types: it travels from rank 0 to the driver.

    step: optimiser steps done, 0..total_steps. epoch: the one being trained, from 1. data_wait: share of step time
    spent waiting for data, 0..1. eta: seconds left. None: not known yet.
    """

    step: int
    total_steps: int
    epoch: int
    total_epochs: int
    loss: float
    lr: float
    images_per_second: float | None = None
    data_wait: float | None = None
    eta: float | None = None

    def __str__(self) -> str:
        parts = [
            f"step {self.step}/{self.total_steps}",
            f"epoch {self.epoch}/{self.total_epochs}",
            f"loss {self.loss:#.4g}",
            f"lr {self.lr:.2g}",
        ]
        if self.images_per_second is not None:
            parts.append(f"{self.images_per_second:,.{0 if self.images_per_second >= 10 else 1}f} images/s")
        if self.data_wait is not None:
            parts.append(f"data-wait {self.data_wait:.0%}".replace("%", " %"))
        if self.eta is not None:
            parts.append(f"eta {duration(self.eta)}")
        return " ".join(parts)


def duration(seconds: float) -> str:
    """0:42, 12:05, 3:04:05, or 2d 03:04:05 for whole seconds; "?" for what is not finite."""
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h:02}:{m:02}:{s:02}"
    return f"{h}:{m:02}:{s:02}" if h else f"{m}:{s:02}"


def percent(share: float, decimals: int = 1) -> str:
    """A share in 0..1 in per cent, without the sign; "none" for one that is not finite: nobody knows it."""
    return f"{100 * share:.{decimals}f}" if math.isfinite(share) else "none"


class Reading(Protocol):
    """What a bar shows: how much of how much, and in words. `TrainStatus` is one."""

    @property
    def step(self) -> int: ...  # noqa: D102

    @property
    def total_steps(self) -> int: ...  # noqa: D102


class Console:
    """Where a verb of the CLI says things. Made once per process and passed on.

    verbosity: "quiet" leaves results and warnings, "verbose" adds details. out, err: streams, by default the process's.
    """

    def __init__(
        self, verbosity: Verbosity = "normal", out: TextIO | None = None, err: TextIO | None = None
    ) -> None:
        self.verbosity = verbosity
        self._out = _open(out or sys.stdout)
        self._err = _open(err or sys.stderr)
        self._bar: _Bar | None = None
        self._last: Exception | None = None  # of which the last line of `err` tells

    def print(self, text: str) -> None:
        """A line of result; left out when quiet."""
        if self.verbosity != "quiet":
            _line(self._results(), text)

    def detail(self, text: str) -> None:
        """A line that only `--verbose` shows."""
        self._last = None
        if self.verbosity == "verbose":
            _line(self._err, text)

    def warn(self, text: str) -> None:
        """A warning; shown even when quiet."""
        self._last = None
        _line(self._err, f"warning: {printable(text)}", style="yellow")

    def error(self, text: str) -> None:
        """What is wrong; shown even when quiet."""
        self._last = None
        _line(self._err, f"error: {printable(text)}", style="bold red")

    def fail(self, error: UserError | StoreError | Interrupted) -> None:
        """What ends the command; shown even when quiet. Said again only where other lines came after it."""
        if self._last is not error:
            self._last = error
            _line(self._err, last_line(error))
        error.said = True

    def json_line(self, value: Any) -> None:
        """One line of JSON on stdout. Data classes and NumPy scalars are understood; NaN and infinity become null."""
        _line(self._results(), json.dumps(_plain(value)))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table of results; the first column names the row. Numbers are at the right; None is an empty cell."""
        title, columns = printable(title), [printable(name) for name in columns]
        right = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
        cells = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
        if not self._out.is_terminal:
            widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
            _line(self._out, title)
            for row in [columns, *cells]:
                padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
                _line(self._out, "  ".join(padded).rstrip())
            return
        table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        # Too narrow a terminal breaks lines and leaves nothing out; what names the row stays whole, to be typed again.
        for i, (name, to_right) in enumerate(zip(columns, right, strict=True)):
            justify: JustifyMethod = "right" if to_right else "left"
            table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=i == 0)
        for row in cells:
            table.add_row(*map(Text, row))
        self._results().print(table)

    def progress(
        self, total_steps: int, name: str, clock: Callable[[], float] = time.monotonic
    ) -> "TrainProgress":
        """Shows a run of `total_steps` steps; a context manager, or `close()` it."""
        if self.verbosity == "quiet":
            return TrainProgress()
        if self._err.is_terminal:
            self._bar = _Bar(self._err, total_steps, name)
            return self._bar
        return _Lines(self._err, name, clock)

    def _results(self) -> RichConsole:
        """Stdout; while a bar is on the same terminal, the console that prints above the bar."""
        above = self._bar is not None and self._bar.live.is_started and self._out.is_terminal
        return self._err if above else self._out

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Shows work that counts up; the body calls what it is given with (done, in all)."""
        if self.verbosity == "quiet" or not self._err.is_terminal:
            yield lambda done, total: None
            return
        with RichProgress(console=self._err, transient=True) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


class TrainProgress:
    """A run under way. This one is for `--quiet`: it shows nothing."""

    def update(self, status: Reading) -> None:
        """Shows the newest reading."""

    def note(self, text: str) -> None:
        """Prints a line that stays: an evaluation's result, a checkpoint."""

    def close(self) -> None:
        """Ends the display; the last reading stays."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Lines(TrainProgress):
    """Plain lines: the first, the last, and one each few seconds."""

    def __init__(self, err: RichConsole, name: str, clock: Callable[[], float]) -> None:
        self._err = err
        self._name = name
        self._clock = clock
        self._printed_at = -math.inf
        self._pending: Reading | None = None

    def update(self, status: Reading) -> None:
        self._pending = status
        if status.step >= status.total_steps or self._clock() - self._printed_at >= _LINE_SECONDS:
            self._flush()

    def note(self, text: str) -> None:
        _line(self._err, text)

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._pending is not None:
            _line(self._err, f"{self._name}: {self._pending}")
            self._printed_at = self._clock()
            self._pending = None


class _Bar(TrainProgress):
    """A bar over the width of the terminal, and under it the newest reading."""

    def __init__(self, err: RichConsole, total_steps: int, name: str) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            console=err,
            expand=True,
        )
        self._task = self._bar.add_task(name, total=total_steps)
        self._status = ""
        self.live = Live(get_renderable=self._render, console=err, refresh_per_second=4)
        self.live.start()

    def _render(self) -> Group:
        return Group(self._bar, Text(self._status, no_wrap=True, overflow="ellipsis"))

    def update(self, status: Reading) -> None:
        self._status = str(status)
        self._bar.update(self._task, completed=status.step, total=status.total_steps)

    def note(self, text: str) -> None:
        _line(self.live.console, text)

    def close(self) -> None:
        self.live.stop()


def last_line(error: Exception) -> str:
    """What ended a command, as its last line says it: harmless to a terminal, without credentials."""
    return f"ssl-ray: {printable(redact(' '.join(str(error).split())))}"


def _open(stream: TextIO) -> RichConsole:
    # FORCE_COLOR and the like must not send cursor movements into a log file: the stream alone decides.
    terminal = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return RichConsole(file=stream, force_terminal=terminal, highlight=False, markup=False)


def _line(console: RichConsole, text: str, style: str = "") -> None:
    text = "\n".join(map(printable, text.split("\n")))
    if console.is_terminal:
        console.print(Text(text, style=style), soft_wrap=True)
    else:
        print(text, file=console.file, flush=True)


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, tensors
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
