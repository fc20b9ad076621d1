"""The stream: Ray Data executes the plan, and each rank is dealt its own blocks in order.

One Ray Dataset serves all ranks. Its input blocks are rows of the plan (first step, number of steps, rank); a map task
turns one into a block of views. `preserve_order` makes block i belong to rank i modulo W, so a small actor, the
`Dealer`, can hand every rank its blocks without looking inside. Which sample is where, and what it looks like, was
decided by the plan and by (seed, epoch, index, view): neither task order, the number of tasks nor a restart changes it.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data.block import BlockAccessor
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from ssl_ray.data.plan import Plan
from ssl_ray.data.source import Source
from ssl_ray.data.views import ViewPipeline, make_batch
from ssl_ray.errors import UserError

# Ray's cost is per block, not per byte: blocks of some tens of MB amortise it (several steps per block).
BLOCK_BYTES = 64 * 2**20
MAX_STEPS_PER_BLOCK = 16
# Blocks waiting per rank. More hides longer hiccups and holds more memory.
QUEUE_DEPTH = 2
# Batches that a rank holds ready on its device.
READY_BATCHES = 2
# Blocks per execution of the dataset: Ray holds a reference and some metadata for each.
WINDOW_BLOCKS = 1024
MAX_SUBSTITUTES = 32


@dataclass(frozen=True)
class StreamConfig:
    """What a data task needs to make any block of a run.

    max_broken: share of the data set's samples that may turn out unreadable before the run stops.
    """

    source: Source
    pipeline: ViewPipeline
    plan: Plan
    total_steps: int
    max_broken: float = 0.01

    def step_bytes(self, world_size: int) -> int:
        """Bytes of one rank's rows of one step."""
        sample = sum(
            int(np.prod(c.shape)) * np.dtype(c.dtype).itemsize for c in self.pipeline.columns.values()
        )
        return sample * (self.plan.global_batch_size // world_size)


@dataclass(frozen=True)
class Broken:
    """A sample that could not be read, and why."""

    index: int
    path: str
    reason: str


@dataclass
class Batch:
    """One rank's rows of one step: views (B, 3, H, W) uint8, and all other columns."""

    step: int
    views: list[Tensor]
    samples: dict[str, Tensor]


def block_steps(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """Cuts steps start..stop-1 into blocks (first step, number of steps) of 1, 2, 4, ... `most` steps.

    Short blocks first: the first batch should not wait for a whole block's worth of augmentation.
    """
    size, first = 1, start
    while first < stop:
        count = min(size, most, stop - first)
        yield first, count
        size *= 2
        first += count


def make_block(config: StreamConfig, first_step: int, num_steps: int, rank: int, world_size: int) -> Any:
    """The views of a rank's rows of some steps, in order. Returns (columns, list of `Broken`).

    A sample that cannot be read is replaced by the plan's substitute for it; its `index` column names the substitute.
    """
    plan, source, pipeline = config.plan, config.source, config.pipeline
    parts, broken = [], []
    for step in range(first_step, first_step + num_steps):
        epoch = plan.epoch(step)
        indices = plan.indices(step, rank, world_size)
        columns, failures = make_batch(pipeline, source.read(indices), indices, plan.seed, epoch)
        for row, reason in failures:
            original = int(indices[row])
            broken.append(Broken(original, source.path(original), reason))
            for attempt in range(MAX_SUBSTITUTES):
                index = np.array([plan.substitute(epoch, original, attempt)])
                substitute, failed = make_batch(pipeline, source.read(index), index, plan.seed, epoch)
                if not failed:
                    for name, values in substitute.items():
                        columns[name][row] = values[0]
                    break
                broken.append(Broken(int(index[0]), source.path(int(index[0])), failed[0][1]))
            else:
                raise RuntimeError(
                    f"{MAX_SUBSTITUTES} samples in a row could not be read, the last {broken[-1].path}: "
                    f"{broken[-1].reason}"
                )
        parts.append(columns)
    if num_steps == 1:
        return parts[0], broken
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}, broken


@lru_cache(maxsize=2)
def _config_of(ref: "ray.ObjectRef[StreamConfig]") -> StreamConfig:
    """The run's configuration, fetched once per data process rather than once per block."""
    config: StreamConfig = ray.get(ref)
    return config


class _MakeBlocks:
    """The map function: one row of the plan in, one block of views out."""

    def __init__(self, config: "ray.ObjectRef[StreamConfig]", dealer: Any) -> None:
        self.config = [config]  # in a list: an argument that is a bare reference would be resolved by Ray
        self.dealer = dealer

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        row = {name: int(values[0]) for name, values in rows.items()}
        columns, broken = make_block(_config_of(self.config[0]), **row)
        if broken:
            self.dealer.report_broken.remote(broken)
        result: dict[str, np.ndarray] = columns
        return result


class Dealer:
    """Actor that runs the dataset and hands each rank its blocks.

    It is made by the driver, so the pipe fills while the workers start. `start` is called again by a restarted worker
    group: with the step and world size that the run now continues with.
    """

    def __init__(self, config: StreamConfig) -> None:
        _quiet_ray_data()
        self.config = config
        self.config_ref = ray.put(config)
        self.position: tuple[int, int] | None = None
        self.dealt = False
        self.queues: list[asyncio.Queue[Any]] = []
        self.stop_producer = threading.Event()
        self.broken: dict[int, Broken] = {}
        self.news: list[Broken] = []
        self.too_many_broken = False
        self.stopping = False

    async def start(self, first_step: int, world_size: int) -> None:
        """Deals from `first_step` to `world_size` ranks. Does nothing if just that has begun and nobody was dealt."""
        if self.position == (first_step, world_size) and not self.dealt:
            return
        self.loop = asyncio.get_running_loop()
        self.stop_producer.set()
        self.stop_producer = threading.Event()
        self.position, self.dealt = (first_step, world_size), False
        self.queues = [asyncio.Queue(QUEUE_DEPTH) for _ in range(world_size)]
        threading.Thread(
            target=self._produce, args=(first_step, world_size, self.queues, self.stop_producer), daemon=True
        ).start()

    async def next(self, rank: int) -> dict[str, Any]:
        """The rank's next block: {"blocks": [reference]}, empty at the end.

        Else {"error": message, "final": whether starting again would meet the same}.
        """
        self.dealt = True
        item: dict[str, Any] = await self.queues[rank].get()
        return item

    async def report_broken(self, found: list[Broken]) -> None:
        """Called by data tasks. Stops the run when more than the allowed share of the data set is broken."""
        fresh = {b.index: b for b in found if b.index not in self.broken}
        self.broken |= fresh
        self.news += fresh.values()
        allowed = self.config.max_broken * self.config.plan.num_samples
        if not self.too_many_broken and len(self.broken) > allowed:
            self.too_many_broken = True
            listed = "; ".join(f"{b.path} ({b.reason})" for b in list(self.broken.values())[:20])
            more = f"; and {len(self.broken) - 20} more" if len(self.broken) > 20 else ""
            self._fail(
                f"data.max_broken: {len(self.broken)} of {self.config.plan.num_samples} images are unreadable, more "
                f"than the allowed share {self.config.max_broken:g}: {listed}{more}; mend or remove them, or raise "
                "data.max_broken",
                final=True,
            )

    async def take_news(self) -> list[Broken]:
        """Broken samples found since the last call, each once."""
        news, self.news = self.news, []
        return news

    async def count_broken(self) -> int:
        """How many samples could not be read so far."""
        return len(self.broken)

    async def request_stop(self) -> None:
        """Asks the run to end at its next look, with a checkpoint."""
        self.stopping = True

    async def stop_requested(self) -> bool:
        """Whether somebody did."""
        return self.stopping

    def _fail(self, message: str, final: bool) -> None:
        """Tells every rank in place of what waits for it, and deals no more."""
        self.stop_producer.set()
        for waiting in self.queues:
            while not waiting.empty():
                waiting.get_nowait()
            waiting.put_nowait({"error": message, "final": final})

    def _produce(
        self, first_step: int, world_size: int, queues: list["asyncio.Queue[Any]"], stop: threading.Event
    ) -> None:
        """Thread: runs the dataset window by window and fills the queues; blocks while they are full."""

        def put(rank: int, item: dict[str, Any]) -> None:
            future = asyncio.run_coroutine_threadsafe(queues[rank].put(item), self.loop)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    future.result(timeout=0.2)
                    return
            future.cancel()

        try:
            for window in self._windows(first_step, world_size):
                blocks = self._dataset(window).iter_internal_ref_bundles()
                rank = 0
                for bundle in blocks:
                    for entry in bundle.blocks:
                        put(rank, {"blocks": [entry.ref]})
                        rank = (rank + 1) % world_size
                        if stop.is_set():
                            return
            for rank in range(world_size):
                put(rank, {"blocks": []})
        except Exception as error:  # whatever it was, the ranks must hear of it rather than wait for ever
            if not stop.is_set():
                cause = getattr(error, "cause", None) or error
                self.loop.call_soon_threadsafe(self._fail, f"the data stream failed: {cause}", False)

    def _windows(self, first_step: int, world_size: int) -> Iterator[list[dict[str, int]]]:
        most = BLOCK_BYTES // max(1, self.config.step_bytes(world_size))
        window: list[dict[str, int]] = []
        for first, count in block_steps(
            first_step, self.config.total_steps, min(max(1, most), MAX_STEPS_PER_BLOCK)
        ):
            window += [
                {"first_step": first, "num_steps": count, "rank": rank, "world_size": world_size}
                for rank in range(world_size)
            ]
            if len(window) >= WINDOW_BLOCKS:
                yield window
                window = []
        if window:
            yield window

    def _dataset(self, window: list[dict[str, int]]) -> "ray.data.Dataset":
        me = ray.get_runtime_context().current_actor
        return ray.data.from_blocks([pa.Table.from_pylist([row]) for row in window]).map_batches(
            _MakeBlocks(self.config_ref, me), batch_size=None, batch_format="numpy", num_cpus=1
        )


def _quiet_ray_data() -> None:
    """Order, block size and silence for every dataset made in this process."""
    import logging

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.target_max_block_size = 4 * BLOCK_BYTES * MAX_STEPS_PER_BLOCK  # one task, one block
    context.raise_original_map_exception = True  # the user's error, not Ray's advice about it
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class Batches(Iterator[Batch]):
    """A rank's end of the stream: its batches in order, made ready by a thread while the model computes.

    channels_last: memory format of the views; blocks hold them so, any other costs a copy. `waited` sums the seconds
    spent waiting for data. Raises UserError when too much of the data is broken, RuntimeError when the stream failed,
    and StopIteration after the run's last step.
    """

    def __init__(
        self,
        dealer: Any,
        *,
        first_step: int,
        rank: int,
        batch_size: int,
        views: int,
        device: torch.device,
        channels_last: bool = False,
    ) -> None:
        self.dealer = dealer
        self.first_step = first_step
        self.rank = rank
        self.batch_size = batch_size
        self.view_names = [f"view_{i}" for i in range(views)]
        self.device = device
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.waited = 0.0
        self.ready: queue.Queue[Batch | Exception | None] = queue.Queue(READY_BATCHES)
        threading.Thread(target=self._fill, name="batches", daemon=True).start()

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
        """Thread: the next block is asked for while the one at hand is cut into batches."""
        try:
            step = self.first_step
            ahead = self.dealer.next.remote(self.rank)
            while True:
                answer = ray.get(ahead)
                if "error" in answer:
                    raise (UserError if answer["final"] else RuntimeError)(answer["error"])
                if not answer["blocks"]:
                    break
                block = ray.get(answer["blocks"][0])
                ahead = self.dealer.next.remote(self.rank)
                columns = BlockAccessor.for_block(block).to_numpy()
                rows = len(columns["index"])
                assert rows % self.batch_size == 0, "block boundaries are batch boundaries"
                for start in range(0, rows, self.batch_size):
                    part = {name: values[start : start + self.batch_size] for name, values in columns.items()}
                    self.ready.put(self._batch(step, part))
                    step += 1
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


def start_dealer(config: StreamConfig) -> Any:
    """Starts a dealer on this driver's node; it takes no CPU, and its data tasks take what training leaves.

    A dealer that dies is started again, and the restarted worker group tells it where to go on.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return (
        ray.remote(Dealer)
        .options(num_cpus=0, max_concurrency=1000, max_restarts=-1, scheduling_strategy=here)
        .remote(config)
    )
