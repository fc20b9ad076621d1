"""Ray Train's trainer as our clusters need it."""

from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import placement_group_callback


class Trainer(TorchTrainer):  # type: ignore[misc]
    """A `TorchTrainer` that starts no helper which could not work.

    Ray's frees the workers of a controller that was killed, and asks the dashboard whether it was: on a cluster without
    one, as a run starts it for itself, it would only complain every second, and the cluster ends with the run anyway.
    """

    def _create_default_callbacks(self) -> list[Any]:
        cleaner = placement_group_callback.PlacementGroupCleanerCallback
        callbacks = super()._create_default_callbacks()
        if ray._private.worker.get_dashboard_url():
            return list(callbacks)
        return [callback for callback in callbacks if not isinstance(callback, cleaner)]
