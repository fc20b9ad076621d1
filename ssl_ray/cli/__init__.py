"""The command line: `ssl-ray VERB`. One file per verb; a verb imports what it needs when it runs.

`options` has what several verbs share.
"""

import os
import sys
import tempfile
import traceback


def main() -> None:
    """Runs the command line. What a user can mend is one line on stderr and exit status 2; an interruption is 130.

    What nobody has thought of is a line too, with status 1; its traceback is kept in a file. SIGTERM is an interruption
    as Ctrl-C is.
    """
    from ssl_ray.garbage import collect_rarely

    collect_rarely()
    from ssl_ray.cli.app import app
    from ssl_ray.errors import ClusterLost, Interrupted, StoreError, UserError
    from ssl_ray.training import local_cluster
    from ssl_ray.training.stops import sigterm_as_ctrl_c

    try:
        with sigterm_as_ctrl_c():
            app()
    except (UserError, StoreError, Interrupted) as error:
        if not error.said:
            _say(error)
        if isinstance(error, ClusterLost):
            # All is said, written and ended. Python's own way out would meet Ray's core, which ends a process that has
            # lost its cluster in the middle of whatever it does, with a status and a page of its own.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2)
        sys.exit(130 if isinstance(error, Interrupted) else 2)
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="ssl-ray-error-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        lines = str(error).split("\n")
        _say(
            UserError(
                f"{type(error).__name__}: {lines[0]}; this is a fault of ssl-ray's own, please report it with its "
                f"traceback in {file.name}"
            )
        )
        sys.exit(1)
    finally:
        local_cluster.end()  # of a command that began one and ended before it joined it, after the reason


def _say(error: Exception) -> None:
    from ssl_ray.console import last_line

    print(last_line(error), file=sys.stderr)
