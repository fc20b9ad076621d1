"""What the training loop knows of the world around a worker, and a world of one process."""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from pyarrow import fs
from torch import nn

from ssl_ray.data.blocks import Findings, StreamConfig, make_block
from ssl_ray.errors import UserError
from ssl_ray.filesystems import open_uri
from ssl_ray.tracking import AnyTracker, NoTracker
from ssl_ray.training import checkpoint
from ssl_ray.training.folder import RunFolder

LOCAL_CHECKPOINTS = "checkpoints.json"


class SavedCheckpoint(Protocol):
    """One that was saved before; `ray.train.Checkpoint` is such."""

    def as_directory(self) -> AbstractContextManager[str | Path]:
        """In here it is a local folder."""
        ...


class WorkerContext(Protocol):
    """A worker among `world_size`, with a device of its own: where its data come from and what it says goes.

    All ranks call the collective methods, the same number of times. A process group exists already where there is more
    than one worker (see `distributed`).
    """

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, algorithm: nn.Module) -> nn.Module:
        """What is called in place of the algorithm, so that its gradients are means over ranks."""
        ...

    def blocks(self, first_step: int) -> Iterator[dict[str, np.ndarray]]:
        """The rank's rows of the run from a step on, in whole steps; see `make_block`. Begins to make them; collective.

        The iterator raises UserError when too much of the data is broken, RuntimeError when they cannot be made.
        """
        ...

    def broken_images(self) -> int:
        """How many images of the training set could not be read so far."""
        ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds to the run's record, in MLflow; from rank 0. Waits for nothing."""
        ...

    def flush(self) -> None:
        """Waits until a kill would lose none of what was logged."""
        ...

    def send(self, message: Any, wait_s: float = 0.0) -> None:
        """To the driver; see `events`. Waits so long at most for its arrival."""
        ...

    def poll(self, saved: bool) -> tuple[bool, bool]:
        """What rank 0, who alone calls this, is asked to do: (stop, save a checkpoint).

        saved: whether one was saved since the call before.
        """
        ...

    def preemption_notice(self) -> str | None:
        """News, for people, that the node of a worker is about to be taken away; collective, and the same on all."""
        ...

    def checkpoints(self, init_from: str | None) -> list[SavedCheckpoint]:
        """The run's own, the newest last; where it has none the one of another run (path or URI), if there is one."""
        ...

    def storage(self) -> tuple[fs.FileSystem, str]:
        """The run's folder, where checkpoints are written."""
        ...

    def register(self, step: int, path: str | None) -> None:
        """Adds to the run's checkpoints the one that rank 0 has written to `path` in `storage`; collective.

        It is there for `checkpoints` then, and the oldest may be deleted. path: None on other ranks.
        """
        ...


@dataclass(frozen=True)
class _Stored:
    """A checkpoint by its path or URI."""

    uri: str

    def as_directory(self) -> AbstractContextManager[Path]:
        return checkpoint.local_copy(self.uri)


class LocalContext(WorkerContext):
    """One worker in this process, without Ray: for tests, notebooks and debuggers. It makes its blocks itself.

    folder: gets the checkpoints, of which the newest `keep` stay, and a list of them; a later run in the same folder
    goes on from the newest. tracker: takes the metrics. messages: all that was sent. To be set from outside, before or
    while the loop runs: stopping, to end at the next poll with a checkpoint; checkpoint_wanted, to save one then.
    """

    rank, world_size = 0, 1

    def __init__(
        self,
        stream: StreamConfig,
        folder: RunFolder,
        *,
        keep: int = 2,
        device: torch.device | str = "cpu",
        tracker: AnyTracker | None = None,
    ) -> None:
        self.stream, self.folder, self.keep = stream, folder, keep
        self.tracker = tracker or NoTracker()
        self.device = torch.device(device)
        self.messages: list[Any] = []
        self.stopping = self.checkpoint_wanted = False
        self._findings = Findings(stream)
        folder.create()

    def wrap(self, algorithm: nn.Module) -> nn.Module:
        """The algorithm itself."""
        return algorithm

    def blocks(self, first_step: int) -> Iterator[dict[str, np.ndarray]]:
        """A block for each step, made when it is asked for."""
        for step in range(first_step, self.stream.total_steps):
            columns, found = make_block(self.stream, step, 1, rank=0, world_size=1)
            self.messages += self._findings.add(found)
            if reason := self._findings.too_many():
                raise UserError(reason)
            yield columns

    def broken_images(self) -> int:
        """As counted here."""
        return len(self._findings.broken)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """To the tracker."""
        self.tracker.log(metrics, step)

    def flush(self) -> None:
        """The tracker's own."""
        self.tracker.flush()

    def send(self, message: Any, wait_s: float = 0.0) -> None:
        """Kept in `messages`."""
        self.messages.append(message)

    def poll(self, saved: bool) -> tuple[bool, bool]:
        """What was set from outside."""
        self.checkpoint_wanted = self.checkpoint_wanted and not saved
        return self.stopping, self.checkpoint_wanted

    def preemption_notice(self) -> None:
        """Never any."""

    def checkpoints(self, init_from: str | None) -> list[SavedCheckpoint]:
        """As listed in the folder."""
        own = [self.folder.below(name).uri for name in self._listed()]
        return [_Stored(uri) for uri in own or ([init_from] if init_from else [])]

    def storage(self) -> tuple[fs.FileSystem, str]:
        """The folder."""
        filesystem, path = open_uri(self.folder.uri)
        return filesystem, path

    def register(self, step: int, path: str | None) -> None:
        """Writes the list anew, before what it no longer holds is deleted."""
        assert path is not None, "the only rank"
        names = [*self._listed(), PurePosixPath(path).name]
        self.folder.write(LOCAL_CHECKPOINTS, {"checkpoints": names[-self.keep :]})
        filesystem, root = self.storage()
        for name in names[: -self.keep]:
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_dir(f"{root}/{name}")

    def _listed(self) -> list[str]:
        if not self.folder.holds(LOCAL_CHECKPOINTS):
            return []
        names: list[str] = self.folder.read(LOCAL_CHECKPOINTS)["checkpoints"]
        return names
