"""Python's garbage collector in processes that import a lot: a million objects, of which none is garbage.

As it is by default it looks through them again and again, which takes a fifth of the time of such imports, and once
more when the process ends.
"""

import atexit
import gc

SELDOM = (50_000, 20, 100)


def look_seldom() -> None:
    """Before imports."""
    gc.set_threshold(*SELDOM)
    atexit.register(gc.freeze)


def look_at_what_comes() -> None:
    """After imports, for work that goes on for long: as often as ever, but not at what is there by now."""
    gc.freeze()
    gc.set_threshold(*USUAL)


USUAL = gc.get_threshold()
