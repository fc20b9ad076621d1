"""Ray's token of this machine: a cluster started here asks for it."""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

DEFAULT_TOKEN = "~/.ray/auth_token"


def make_token() -> None:
    """The token that a cluster started here wants, where there is none yet.

    Ray makes one itself, but two first starts at a time would make two, and one of them be refused by its own cluster.
    Nobody sees a half of this one, and the first one stays.
    """
    if (
        has_token()
        or "RAY_AUTH_TOKEN_PATH" in os.environ
        or os.environ.get("RAY_AUTH_MODE", "token") != "token"
    ):
        return
    path = Path(DEFAULT_TOKEN).expanduser()
    with suppress(OSError):  # somebody was faster, or it cannot be written: Ray says so
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name) as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.link(file.name, path)


def has_token() -> bool:
    """Whether Ray will find one."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", DEFAULT_TOKEN)
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or os.path.exists(os.path.expanduser(path))
