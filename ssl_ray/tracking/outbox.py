"""A queue that a background thread empties into MLflow, however long MLflow is away."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from ssl_ray.tracking.client import THREAD_PREFIX, reason
from ssl_ray.tracking.records import Record, append, read

logger = logging.getLogger("ssl_ray.tracking")

_LONGEST_PAUSE = 30.0


class Outbox:
    """Keeps records in order until `send` has taken them; `put` never blocks and never raises.

    what: the plural noun for messages ("metrics"). where: the store, for messages. send: takes up to `batch` records,
    raises if it could not; called in the background thread alone, every `interval` seconds or as soon as a batch is
    full. file: what waits while `send` fails is also written there, so that a kill loses only the last seconds; a file
    found at the start is sent first.
    """

    def __init__(
        self,
        what: str,
        where: str,
        send: Callable[[Sequence[Record]], None],
        file: Path,
        *,
        batch: int,
        interval: float = 2.0,
    ) -> None:
        self._what, self._where, self._send, self._file = what, where, send, file
        self._batch, self._interval = batch, interval
        self._incoming: deque[Record] = deque()  # put by the caller, taken by the thread: both ends atomic
        # Taken from `_incoming` and not yet sent; `_file` holds the first `_on_file` of them. Guarded by `_lock`.
        self._pending: list[Record] = read(file) if file.exists() else []
        self._on_file = len(self._pending)
        self._lock = threading.Lock()
        self._away = self._closing = False
        # Set by `close`: the thread, which may hang in a send, touches nothing more.
        self._abandoned = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{THREAD_PREFIX}{what}", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Adds a record."""
        self._incoming.append(record)
        if len(self._incoming) >= self._batch and not self._away:
            self._wake.set()

    @property
    def away(self) -> bool:
        """The last send failed."""
        return self._away

    def flush(self, timeout: float) -> bool:
        """Waits until everything put so far is delivered: at most `timeout` seconds, not at all during an outage.

        What then still waits is written to the file, so that a kill loses none of it. Returns whether nothing waits.
        """
        self._wake.set()
        deadline = time.monotonic() + timeout
        while (self._incoming or self._pending) and not self._away and time.monotonic() < deadline:
            time.sleep(0.01)
        with self._lock:
            self._take()
            self._keep()
            return not self._pending

    def close(self, deadline: float) -> tuple[int, int]:
        """Delivers the rest until `deadline` (of time.monotonic).

        Returns how many records were left in the file, and how many could not be written there either.
        """
        self._closing = True
        self._wake.set()
        self._thread.join(max(deadline - time.monotonic(), 0))
        with self._lock:
            self._abandoned.set()
            self._take()
            self._keep()
            return self._on_file, len(self._pending) - self._on_file

    def _run(self) -> None:
        pause = self._interval
        while not self._abandoned.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            closing = self._closing
            if self._ship():
                pause = self._interval
                if closing:
                    return
            else:
                pause = 0.5 if self._closing else min(2 * pause, _LONGEST_PAUSE)

    def _ship(self) -> bool:
        """Sends all there is. Returns False when a send failed."""
        sent = 0
        while True:
            with self._lock:
                if self._abandoned.is_set():
                    return True
                self._take()
                batch = self._pending[: self._batch]
            if not batch:
                break
            try:
                self._send(batch)
            except Exception as error:
                self._failed(error)
                return False
            with self._lock:
                if self._abandoned.is_set():
                    return True
                del self._pending[: len(batch)]
                self._on_file = max(0, self._on_file - len(batch))
                if not self._pending:
                    self._file.unlink(missing_ok=True)
            sent += len(batch)
        if self._away:
            self._away = False
            logger.warning("MLflow at %s is back: %d %s delivered", self._where, sent, self._what)
        return True

    def _failed(self, error: Exception) -> None:
        with self._lock:
            if self._abandoned.is_set():
                return
            self._take()
            self._keep()
            kept = self._on_file == len(self._pending)
        if not self._away:
            self._away = True
            logger.warning(
                "MLflow at %s does not take %s (%s); the run goes on and keeps them in %s",
                *(self._where, self._what, reason(error), self._file if kept else "memory"),
            )

    def _take(self) -> None:
        while self._incoming:
            self._pending.append(self._incoming.popleft())

    def _keep(self) -> None:
        """Writes to the file what of `_pending` it does not hold yet."""
        if self._on_file == len(self._pending):
            return
        try:
            append(self._file, self._pending[self._on_file :])
            self._on_file = len(self._pending)
        except OSError as error:
            logger.warning("cannot keep undelivered %s in %s: %s", self._what, self._file, error)
