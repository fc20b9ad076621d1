"""What the package logs as a warning, wherever it runs, is said on the user's console."""

import logging
from collections.abc import Callable


class Notices(logging.Handler):
    """Hands the package's warnings to `say`, one line each, from any thread. A context manager, or `attach` it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.say = say
        self.logger = logging.getLogger("ssl_ray")

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        self.say(record.getMessage())

    def attach(self) -> "Notices":
        """Listens from now on."""
        self.logger.addHandler(self)
        # Importing mlflow.pytorch raises the root logger's level to ERROR and gives it a handler: neither is for us.
        self.logger.setLevel(logging.WARNING)
        self.logger.propagate = False
        return self

    def __enter__(self) -> "Notices":
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.logger.removeHandler(self)
        self.logger.setLevel(logging.NOTSET)
        self.logger.propagate = True
