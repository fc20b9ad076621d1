"""Errors that a user can mend: shown as one line, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave. The message says what was wrong, the value, what is allowed, what to do.

    said: whether the user has been told; see `Console.fail`.
    """

    said = False


class StoreError(OSError):
    """An object store could not do what was asked of it. One line: where, what happened, what to do.

    No UserError: workers that meet one start again from the last checkpoint. said: as of a UserError.
    """

    said = False


class Interrupted(Exception):
    """Ctrl-C or SIGTERM ended the command before it could end by itself. One line: what is left, and how to go on."""

    said = False


class ClusterLost(UserError):
    """What this process works with in Ray is gone: nothing more can be asked of Ray in it, not even to shut down."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its kind where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


MISTAKES = (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError, AssertionError)
"""What a call raises for arguments that it cannot work with, if nobody thought of them."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns "did you mean 'x'?" for a close match of `name`, else the whole list of what is allowed."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(names) or 'nothing'}"
