"""Variables for Ray Train's controller, in a module that does not import torch: neither need the controller."""

import os
from collections.abc import Mapping
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback


class ControllerEnvironment(ControllerCallback):  # type: ignore[misc]
    """Sets them in its process, which may be one that waited for work when it was made the controller's."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = dict(variables)

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called by Ray Train in the controller, before it reads them to start workers."""
        os.environ |= self.variables
