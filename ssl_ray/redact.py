"""Text without the credentials in it: what goes into messages, logs, recipes and MLflow."""

import re

# user:password@ or token@ before a host; a password may hold "/", as AWS's do. A port is no password. What was taken
# for a path has lost one "/".
_USER = re.compile(r"(:/+)(?:[^/\s'\"]*|[^/:@\s'\"]*:(?!\d+/)[^@?\s'\"]*)@")
_PARAMETER = re.compile(r"(?i)([?&](?:password|passwd|token|secret|secret_key|access_key)=)[^&\s'\"]*")


def redact(text: str) -> str:
    """The text with the credentials of any URI in it replaced by `***`."""
    return _PARAMETER.sub(r"\1***", _USER.sub(r"\1***@", text))
