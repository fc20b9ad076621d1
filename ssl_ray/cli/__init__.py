"""The command line: `ssl-ray VERB`. One file per verb; a verb imports what it needs when it runs.

`options` has what several verbs share.
"""

import sys


def main() -> None:
    """Runs the command line. What a user can mend is one line on stderr and exit status 2."""
    from ssl_ray.cli.app import app
    from ssl_ray.errors import StoreError, UserError
    from ssl_ray.printable import printable
    from ssl_ray.redact import redact

    try:
        app()
    except (UserError, StoreError) as error:
        print(f"ssl-ray: {printable(redact(' '.join(str(error).split())))}", file=sys.stderr)
        sys.exit(2)
