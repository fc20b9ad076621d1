"""A rank's end of the stream: blocks become batches on the rank's device."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

# Batches that a rank holds ready on its device.
READY_BATCHES = 2


@dataclass
class Batch:
    """One rank's rows of one step: views (B, 3, H, W) uint8, and all other columns."""

    step: int
    views: list[Tensor]
    samples: dict[str, Tensor]


class Batches(Iterator[Batch]):
    """A rank's end of the stream: its batches in order, made ready by a thread while the model computes.

    blocks: the rank's, from `first_step` on: columns with the rows of one or more whole steps; read in the thread.
    channels_last: memory format of the views; blocks hold them so, any other costs a copy. `waited` sums the seconds
    spent waiting for data. Raises what `blocks` raises, and StopIteration after the last step. To be closed by whoever
    stops before that: as a context manager, or by `close`.
    """

    def __init__(
        self,
        blocks: Iterator[dict[str, np.ndarray]],
        *,
        first_step: int,
        batch_size: int,
        views: int,
        device: torch.device,
        channels_last: bool = False,
    ) -> None:
        self.blocks = blocks
        self.first_step = first_step
        self.batch_size = batch_size
        self.view_names = [f"view_{i}" for i in range(views)]
        self.device = device
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.waited = 0.0
        self.closed = False
        self.ready: queue.Queue[Batch | Exception | None] = queue.Queue(READY_BATCHES)
        threading.Thread(target=self._fill, name="batches", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is read. The thread ends with the block that it is at."""
        self.closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self.ready.get_nowait()

    def __next__(self) -> Batch:
        started = time.perf_counter()
        item = self.ready.get()
        self.waited += time.perf_counter() - started
        if isinstance(item, Batch):
            return item
        self.ready.put(item)  # for whoever asks again
        if item is None:
            raise StopIteration
        raise item

    def _fill(self) -> None:
        """Thread: cuts blocks into batches."""
        try:
            step = self.first_step
            for columns in self.blocks:
                rows = len(columns["index"])
                assert rows % self.batch_size == 0, "block boundaries are batch boundaries"
                for start in range(0, rows, self.batch_size):
                    part = {name: values[start : start + self.batch_size] for name, values in columns.items()}
                    self.ready.put(self._batch(step, part))
                    step += 1
                    if self.closed:
                        return
            self.ready.put(None)
        except Exception as error:  # raised where it is waited for
            self.ready.put(error)

    def _batch(self, step: int, columns: dict[str, np.ndarray]) -> Batch:
        samples = {name: self._to_device(values) for name, values in columns.items()}
        views = [samples.pop(name).permute(0, 3, 1, 2) for name in self.view_names]
        return Batch(step, [view.contiguous(memory_format=self.memory_format) for view in views], samples)

    def _to_device(self, values: np.ndarray) -> Tensor:
        """A copy: blocks are read-only views of shared memory. Into pinned memory on the way to a GPU."""
        dtype = getattr(torch, values.dtype.name)
        tensor = torch.empty(values.shape, dtype=dtype, pin_memory=self.device.type == "cuda")
        tensor.numpy()[...] = values
        return tensor.to(self.device, non_blocking=True)
