"""The one place that imports MLflow: late, muted, with bounded waits."""

import contextlib
import fcntl
import hashlib
import importlib
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from ssl_ray.redact import redact
from ssl_ray.tracking.store import database, require

T = TypeVar("T")

# MLflow's own defaults (120 s a request, 7 retries) would hold a caller for a quarter of an hour. What is set in the
# environment already wins.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Of the names of the threads that talk to MLflow.
THREAD_PREFIX = "mlflow-"
# Importing MLflow and migrating a fresh database must not happen in two threads at once.
_first_use = threading.Lock()


def set_environment() -> None:
    """What MLflow reads from the environment when it is imported."""
    for variable, value in _ENVIRONMENT.items():
        if variable not in os.environ:
            os.environ[variable] = value


def import_mlflow(name: str = "mlflow") -> Any:
    """The module `mlflow` or one of its parts, imported on first use (2 to 3 s)."""
    set_environment()
    # By module and not with `catch_warnings`, which is not thread-safe.
    warnings.filterwarnings("ignore", module=r"mlflow\.")
    with _first_use:
        module = importlib.import_module(name)
    _mute()
    return module


def _mute() -> None:
    """MLflow and what it stands on log what they raise, with pages of traceback: an outage is told once, by us.

    urllib3's errors stay: others use it, too.
    """
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    for name in ("mlflow", "sqlalchemy", "alembic"):
        known = [one for one in list(logging.root.manager.loggerDict) if one.startswith(f"{name}.")]
        for one in map(logging.getLogger, (name, *known)):
            if (
                one.level != logging.CRITICAL + 1
            ):  # to set it again would cost what it costs every logger there is
                one.setLevel(logging.CRITICAL + 1)


def connect(uri: str, *, must_exist: bool = False) -> Any:
    """An MlflowClient of the store. The first one on a fresh SQLite file creates its tables (3 to 6 s).

    must_exist: raises StoreGone, rather than make a SQLite file that is not there, and the folders above it.
    """
    if must_exist:
        require(uri)
    mlflow = import_mlflow()
    with _first_use, _alone_with(uri):
        client = mlflow.MlflowClient(uri)
    _mute()  # its migrations configure logging anew
    return client


@contextlib.contextmanager
def _alone_with(uri: str) -> Iterator[None]:
    """Of several processes that find a SQLite file without tables one makes them, and the others wait for it.

    MLflow lets them all begin, and all but one fail.
    """
    file = database(uri)
    with contextlib.ExitStack() as stack:
        if file is not None:
            # This user's alone: whoever may open a lock may hold it for ever.
            store = hashlib.sha256(bytes(file.resolve())).hexdigest()[:16]
            path = os.path.join(tempfile.gettempdir(), f"ssl-ray-mlflow-{os.getuid()}-{store}.lock")
            with contextlib.suppress(OSError):  # a file system without locks, or a file that is not ours
                lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def reason(error: BaseException) -> str:
    """The innermost cause of an error as one short line without credentials."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    line = next(iter(str(error).splitlines()), "no answer")
    return redact(f"{type(error).__name__}: {line}"[:300])


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`, run in a daemon thread. Raises TimeoutError after `seconds`; the thread is left behind."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f"{THREAD_PREFIX}call", daemon=True).start()
    return future.result(seconds)
