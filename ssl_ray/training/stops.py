"""Ways to be told to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """In here SIGTERM does what Ctrl-C does: `ray job stop`, a batch system, a pod that is deleted send it.

    To be entered after `ray.init`, whose own answer to it is to exit at once. Signals are the main thread's alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
