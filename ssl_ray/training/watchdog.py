"""A worker that hangs ends itself, after telling where: then Ray Train starts the group again.

Nobody else can say where it hangs. What even this thread does not survive, a process that is stopped or a C extension
that keeps Python's lock, is found out by its peers, who hang with it, or else by Ray Train's own check of its workers.
"""

import contextlib
import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray

from ssl_ray.training.events import Hung

TELL_S = 10.0


class Watchdog:
    """Watches the steps of one worker. minutes: how long one may take, None for ever."""

    def __init__(self, dealer: Any, rank: int, minutes: float | None) -> None:
        self.dealer, self.rank = dealer, rank
        self.limit = None if minutes is None else 60 * minutes
        self.began: float | None = None
        if self.limit is not None:
            threading.Thread(target=self._watch, args=(self.limit,), name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around what must not take longer. Waiting for data, evaluations and checkpoints have other deadlines."""
        self.began = time.monotonic()
        yield
        self.began = None

    def _watch(self, limit: float) -> None:
        while True:
            time.sleep(min(1.0, limit / 4))
            began = self.began
            if began is not None and time.monotonic() - began > limit:
                with contextlib.suppress(
                    Exception
                ):  # whatever becomes of the message, this process has to end
                    event = Hung(self.rank, limit / 60, _stacks())
                    ray.get(self.dealer.tell.remote(event), timeout=TELL_S)
                os._exit(1)


def _stacks() -> str:
    """Where every thread of this process is, the most recent call first."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
