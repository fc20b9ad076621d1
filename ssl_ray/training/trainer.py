"""Ray Train's trainer, started, watched and ended by a driver that does not wait in it.

`TorchTrainer.fit` waits inside Ray's core until the training has ended. A run that ends for another reason would have
to leave that call behind in a thread, and Ray's core, taken down under it by `ray.shutdown`, crashes the process.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController

from ssl_ray.training import local_cluster
from ssl_ray.training.controller_environment import ControllerEnvironment
from ssl_ray.training.failures import Retries

# The controller hears of an abort between two looks at its workers; one that starts a group does not look.
ABORT_S = 30.0


def ready(reference: Any) -> bool:
    """Whether there is an answer. Not waited for: what a signal's handler raises within Ray's wait is a SystemError."""
    try:
        return bool(ray.wait([reference], timeout=0)[0])
    except SystemError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None


class Training:
    """A training under way in Ray Train's controller, an actor."""

    error = None  # for `fit`, which looks whether what it returns has failed

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._run = controller.run.remote()

    @property
    def running(self) -> bool:
        """Whether Ray Train is at work. It has given back its workers when it is not."""
        return not ready(self._run)

    def result(self) -> Any:
        """Waits for Ray Train's result.

        Raises TrainingFailedError if it has failed, RayActorError if the controller is gone.
        """
        ray.get(self._run)
        result = ray.get(self._controller.get_result.remote())
        if result.error:
            raise result.error
        return result

    def end(self) -> None:
        """Ends the training, whatever it is at; what its workers held is free afterwards."""
        with contextlib.suppress(ray.exceptions.RayError):  # it answers by ending itself
            if self.running:
                ray.get(self._controller.abort.remote(), timeout=ABORT_S)
        ray.kill(self._controller)


class Trainer(TorchTrainer):  # type: ignore[misc]
    """A `TorchTrainer` whose `fit` returns at once, with a `Training`.

    policy: decides on the workers' number, Ray Train's own does if it is None. environment: of the controller, which
    hands Ray Train's variables on to its workers.

    It starts no helper, a process each, that has nothing to do. One serves Ray datasets, of which it has none. One
    hears of nodes that are taken away: not the machine on which a command has a cluster of its own. Another frees the
    workers of a controller that was killed, and asks the dashboard whether it was: on a cluster without one it would
    only complain every second, and the cluster ends with the run anyway.
    """

    def __init__(
        self, *args: Any, policy: Any = None, environment: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.policy, self.environment = policy, environment or {}

    def _create_default_callbacks(self) -> list[Any]:
        idle = [DatasetsCallback]
        # In an actor, as a search's trial is, Ray names a dashboard whether there is one or not.
        if local_cluster.here() or not ray._private.worker.get_dashboard_url():
            idle.append(PlacementGroupCleanerCallback)
        kept = [one for one in super()._create_default_callbacks() if not isinstance(one, tuple(idle))]
        return [ControllerEnvironment(self.environment), *kept]

    def _initialize_and_run_controller(self, **kwargs: Any) -> Training:
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        options: dict[str, Any] = {"num_cpus": 0, "label_selector": here}
        if (
            not local_cluster.here()
        ):  # whose processes have all this, and one that waits for work can begin at once
            # The controller waits for its workers in an async method, of which Ray would warn.
            quiet = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}
            options["runtime_env"] = {"env_vars": quiet | get_env_vars_to_propagate()}
        controller = ray.remote(**options)(TrainController)
        kwargs["failure_policy"] = Retries(self.run_config.failure_config)
        if self.policy is not None:
            kwargs["scaling_policy"] = self.policy
        return Training(controller.remote(**kwargs))
