"""How workers join one torch process group, told by a controller that does not import torch for it.

Ray Train's `TorchConfig` and all that it hands to the controller lie in a module that imports torch: seconds and
hundreds of MB, in a process that starts workers and counts their reports.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

from ssl_ray.garbage import collect_rarely

# A worker that has died cannot leave its group, and is not waited for.
LEAVE_S = 5.0


@dataclass
class ProcessGroup(BackendConfig):  # type: ignore[misc]
    """Ray Train's backend for torch. backend: "nccl" or "gloo". timeout_s: of a collective."""

    backend: str
    timeout_s: int

    @property
    def backend_cls(self) -> type[Backend]:
        """Read in the driver; runs in the controller."""
        return _Joined

    @property
    def train_func_context(self) -> Callable[[], Any]:
        """Around the training loop, in the worker: its device is the default one."""
        from ray.train.torch import TorchConfig

        context: Callable[[], Any] = TorchConfig().train_func_context
        return context


class _Joined(Backend):  # type: ignore[misc]
    """Joins the workers of a group when it has started."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Called by Ray Train in the controller."""
        host, port = worker_group.execute_single(0, get_address_and_port)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _join,
                    host,
                    port,
                    rank,
                    len(worker_group),
                    backend_config.backend,
                    backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Called by Ray Train in the controller."""
        leaving = worker_group.execute_async(_leave, len(worker_group) > 1)
        ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_S)


def _join(host: str, port: int, rank: int, world_size: int, backend: str, timeout_s: int) -> None:
    """In a worker, which begins with this. What reads `torchrun`'s environment variables finds them."""
    collect_rarely()
    from ray.train.torch import config

    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, rank, world_size, "env://", timeout_s)


def _leave(destroy: bool) -> None:
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=destroy)
