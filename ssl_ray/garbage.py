"""Python's garbage collector in processes that import a lot: a million objects, of which none is garbage.

As it is by default it looks through them again and again, which takes a fifth of the time of such imports, and once
more when the process ends.
"""

import atexit
import gc

USUAL = gc.get_threshold()
RARE = (50_000, 20, 100)


def collect_rarely() -> None:
    """For a process that begins to import."""
    gc.set_threshold(*RARE)
    atexit.register(gc.freeze)


def collect_as_usual() -> None:
    """For long work after imports. What is there by now is left out of all collections (`gc.freeze`)."""
    gc.freeze()
    gc.set_threshold(*USUAL)
