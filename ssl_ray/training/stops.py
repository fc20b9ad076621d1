"""Ways to be told to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """In here SIGTERM does what Ctrl-C does: `ray job stop`, a batch system, a pod that is deleted send it.

    Signals are the main thread's alone.
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


@contextmanager
def held() -> Iterator[None]:
    """Around what leaves things in order, within seconds: a first Ctrl-C or SIGTERM changes nothing, a second does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def wait(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    numbers = (signal.SIGINT, signal.SIGTERM)
    # A shell has its background ignore Ctrl-C: that stays so.
    before = {n: signal.signal(n, wait) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
