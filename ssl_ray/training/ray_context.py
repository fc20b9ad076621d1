"""What Ray Train's workers run: the training loop, in the world that Ray gives it."""

import inspect
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import ray
import ray.train
from pyarrow import fs
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode
from ray.train.torch import get_device, prepare_model
from torch import nn

from ssl_ray import distributed
from ssl_ray.data.stream import dealt_blocks
from ssl_ray.errors import UserError
from ssl_ray.filesystems import open_uri
from ssl_ray.garbage import collect_as_usual
from ssl_ray.training.context import SavedCheckpoint, WorkerContext
from ssl_ray.training.events import Fatal, Flush, Metrics
from ssl_ray.training.loop import Job, train

# Buffers are queues, banks and BN statistics: every rank writes the same rows itself, so none is sent at each forward.
# The argument has another name in older releases of torch.
_SYNC_BUFFERS = "forward_sync_buffers"
DDP = {
    _SYNC_BUFFERS
    if _SYNC_BUFFERS in inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    else "broadcast_buffers": False,
    "gradient_as_bucket_view": True,
}


def train_loop(job: Job) -> dict[str, Any]:
    """What Ray Train calls: `train`, with the user's errors told to the driver rather than retried."""
    collect_as_usual()
    try:
        return train(job, RayContext(job.dealer))
    except UserError as error:
        ray.get(job.dealer.tell.remote(Fatal(str(error))))
        raise


class RayContext(WorkerContext):
    """A worker of Ray Train's group, made in its process. dealer: handle of the stream's actor, also the mailbox."""

    def __init__(self, dealer: Any) -> None:
        _quiet_ray_train()
        self._dealer = dealer
        self._context = ray.train.get_context()
        self.rank, self.world_size = self._context.get_world_rank(), self._context.get_world_size()
        self.device = get_device()
        self._preemption: Any = None

    def wrap(self, algorithm: nn.Module) -> nn.Module:
        """In DDP, where there are several ranks."""
        model: nn.Module = prepare_model(algorithm, parallel_strategy_kwargs=DDP)
        return model

    def blocks(self, first_step: int) -> Iterator[dict[str, np.ndarray]]:
        """As the dealer deals them."""
        if self.rank == 0:
            ray.get(self._dealer.start.remote(first_step, self.world_size))
        distributed.barrier()
        return dealt_blocks(self._dealer, self.rank)

    def broken_images(self) -> int:
        """As the data tasks have reported."""
        count: int = ray.get(self._dealer.count_broken.remote())
        return count

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """The driver does it: one process that imports MLflow is enough."""
        self.send(Metrics(dict(metrics), step, time.time_ns() // 1_000_000))

    def flush(self) -> None:
        """Waits until the driver has."""
        ray.get(self._dealer.tell_and_wait.remote(Flush()))

    def send(self, message: Any, wait_s: float = 0.0) -> None:
        """The dealer keeps it until the driver fetches it. Raises GetTimeoutError after `wait_s`, if that is not 0."""
        sent = self._dealer.tell.remote(message)
        if wait_s:
            ray.get(sent, timeout=wait_s)

    def poll(self, saved: bool) -> tuple[bool, bool]:
        """As the driver or the controller has asked the dealer."""
        asked: tuple[bool, bool] = ray.get(self._dealer.look.remote(saved))
        return asked

    def preemption_notice(self) -> str | None:
        """As Ray tells it of a node that is drained; Ray Train has a barrier in it."""
        leaving = ray.train.get_preemption_info()
        if leaving is None or leaving == self._preemption:
            return None
        self._preemption = leaving
        ranks = ", ".join(map(str, leaving.preempted_ranks))
        when = "soon"
        if leaving.deadline_ms is not None:
            when = f"in {max(0.0, leaving.deadline_ms / 1000 - time.time()):.0f} s"
        return (
            f"the node of worker {ranks} is taken away {when}: saving a checkpoint; training goes on until then, and "
            "after it from the last checkpoint"
        )

    def checkpoints(self, init_from: str | None) -> list[SavedCheckpoint]:
        """As they were reported to Ray Train."""
        reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
        if reported or init_from is None:
            return [one.checkpoint for one in reported]
        filesystem, path = open_uri(init_from)
        return [ray.train.Checkpoint(path, filesystem)]

    def storage(self) -> tuple[fs.FileSystem, str]:
        """Ray Train's place for the run."""
        storage = self._context.get_storage()
        return storage.storage_filesystem, storage.experiment_fs_path

    def register(self, step: int, path: str | None) -> None:
        """Ray Train's `report`, a barrier."""
        ray.train.report(
            {"step": step},
            checkpoint=None if path is None else ray.train.Checkpoint(path, self.storage()[0]),
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )


def _quiet_ray_train() -> None:
    """Ray Train logs each reported result at INFO, under a logger named after its file's path."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    import ray.train.v2._internal.execution.context as train_context

    train_context.logger.setLevel(logging.WARNING)
