"""What Ray Train's controller does when workers end: says why, in a line each, and tries again what may go better."""

import re
from typing import Any

import ray
from ray.train import UserCallback, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy

from ssl_ray.errors import UserError
from ssl_ray.training.events import Failed


class Failures(UserCallback):  # type: ignore[misc]
    """In Ray Train's controller: passes on which workers ended, and why."""

    def __init__(self, dealer: Any) -> None:
        self.dealer = dealer

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train before it starts the group again, or gives up."""
        causes = {rank: cause(error) for rank, error in worker_exceptions.items()}
        self.dealer.tell.remote(Failed(causes))


class Retries(DefaultFailurePolicy):  # type: ignore[misc]
    """Ray Train's own policy, except that what a user has to mend is not tried again."""

    def _is_retryable_error(self, training_failed_error: Exception) -> bool:
        if isinstance(training_failed_error, WorkerGroupError) and any(
            isinstance(error, UserError) for error in training_failed_error.worker_failures.values()
        ):
            return False
        retryable: bool = super()._is_retryable_error(training_failed_error)
        return retryable


def cause(error: Exception) -> str:
    """An error in one line; of what a worker raised, the line that says what."""
    error = getattr(error, "health_check_failure", error)  # Ray Train's word around it
    if isinstance(error, WorkerHealthCheckTimeoutError):
        return "it did not answer within training.hang_minutes (stopped, or hanging in native code), and is killed"
    if isinstance(error, ray.exceptions.RayActorError):
        return "its node is gone" if "node was terminated" in str(error) else "its process is gone"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines or [type(error).__name__])[-1]
