"""A worker that hangs ends itself, after telling where: then Ray Train starts the group again.

Nobody else can say where it hangs. What even this thread does not survive, a process that is stopped or native code
that keeps Python's lock, is found out by Ray Train's controller, whom a worker has to answer all the time, whatever it
is at: evaluations and first steps may be long, silence may not. It kills the worker, which Ray's raylet does in the end
with SIGKILL, and starts the group again.
"""

import contextlib
import faulthandler
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Self

from ssl_ray.training.context import WorkerContext
from ssl_ray.training.events import Hung

TELL_S = 10.0
# A busy machine, or a large library that is being imported, may keep a worker from answering for some seconds.
LEAST_SILENCE_S = 30.0


def silence(minutes: float | None) -> float:
    """For how many seconds a worker may leave Ray Train's controller without an answer. minutes: as of `Watchdog`."""
    return math.inf if minutes is None else max(60 * minutes, LEAST_SILENCE_S)


class Watchdog:
    """Watches the steps of one worker, while it is entered. minutes: how long one may take, None for ever."""

    def __init__(self, context: WorkerContext, minutes: float | None) -> None:
        self.context = context
        self.limit = None if minutes is None else 60 * minutes
        self.began: float | None = None
        self._left = threading.Event()

    def __enter__(self) -> Self:
        if self.limit is not None:
            threading.Thread(target=self._watch, args=(self.limit,), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around what must not take longer. Waiting for data, evaluations and checkpoints have other deadlines."""
        self.began = time.monotonic()
        yield
        self.began = None

    def _watch(self, limit: float) -> None:
        pause = min(1.0, limit / 4)
        watched, waited, looked = self.began, 0.0, time.monotonic()
        while not self._left.wait(pause):
            now, began = time.monotonic(), self.began
            # A process that was stopped (Ctrl-Z, a debugger) has not hung: a long sleep counts as a short one.
            waited = waited + min(now - looked, 2 * pause) if began == watched else 0.0
            watched, looked = began, now
            if began is not None and waited > limit:
                with contextlib.suppress(
                    Exception
                ):  # whatever becomes of the message, this process has to end
                    self.context.send(Hung(self.context.rank, limit / 60, _stacks()), wait_s=TELL_S)
                os._exit(1)


def _stacks() -> str:
    """Where every thread of this process is, the most recent call first."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
