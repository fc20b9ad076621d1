"""The stream: Ray Data executes the plan, and each rank is dealt its own blocks in order.

One Ray Dataset serves all ranks. Its input blocks are rows of the plan (first step, number of steps, rank); a map task
turns one into a block of views. `preserve_order` makes block i belong to rank i modulo W, so a small actor, the
`Dealer`, can hand every rank its blocks without looking inside. Which sample is where, and what it looks like, was
decided by the plan and by (seed, epoch, index, view): neither task order, the number of tasks nor a restart changes it.
"""

import asyncio
import contextlib
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data.block import BlockAccessor
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ssl_ray.data.blocks import Broken, Findings, PartlyUsed, StreamConfig, block_steps, make_block
from ssl_ray.errors import UserError

# Ray's cost is per block, not per byte: blocks of some tens of MB amortise it (several steps per block).
BLOCK_BYTES = 64 * 2**20
MAX_STEPS_PER_BLOCK = 16
# Blocks waiting per rank. More hides longer hiccups and holds more memory.
QUEUE_DEPTH = 2
# Blocks per execution of the dataset: Ray holds a reference and some metadata for each.
WINDOW_BLOCKS = 1024


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
        columns, found = make_block(_config_of(self.config[0]), **row)
        if found:
            self.dealer.report.remote(found)
        result: dict[str, np.ndarray] = columns
        return result


class Dealer:
    """Actor that runs the dataset and hands each rank its blocks; what ranks have to say to the driver it passes on.

    It is made by the driver, so the pipe fills while the workers start. `start` is called again by a restarted worker
    group: with the step and world size that the run now continues with.
    """

    def __init__(self, config: StreamConfig, *, cpus_per_worker: float, alone: bool) -> None:
        quiet_ray_data()
        if alone:
            without_helpers()
        self.config, self.cpus_per_worker, self.alone = config, cpus_per_worker, alone
        self.config_ref = ray.put(config)
        self.position: tuple[int, int] | None = None
        self.dealt = False
        self.queues: list[asyncio.Queue[Any]] = []
        # What each rank is using, and what it uses next. An owner that lets go of a small object (under 100 KB, kept in
        # its own memory) before the borrower does keeps it for ever.
        self.in_use: list[deque[Any]] = []
        self.stop_producer = threading.Event()
        self.findings = Findings(config)
        self.news: list[Any] = []
        self.has_news = asyncio.Event()
        # Acknowledgements that ranks wait for: of news that the driver has yet to take, and of those that it has taken.
        self.waiting: list[asyncio.Event] = []
        self.taken: list[asyncio.Event] = []
        self.too_many_broken = False
        self.stopping = False
        self.checkpoint_wanted = False

    async def start(self, first_step: int, world_size: int) -> None:
        """Deals from `first_step` to `world_size` ranks. Does nothing if just that has begun and nobody was dealt."""
        if self.position == (first_step, world_size) and not self.dealt:
            return
        self.loop = asyncio.get_running_loop()
        self.stop_producer.set()
        self.stop_producer = threading.Event()
        self.position, self.dealt = (first_step, world_size), False
        self.checkpoint_wanted = False  # a group that starts has just read one
        self.queues = [asyncio.Queue(QUEUE_DEPTH) for _ in range(world_size)]
        self.in_use = [deque(maxlen=2) for _ in range(world_size)]
        if self.alone:  # or the first tasks would take the CPUs of workers that are about to come
            left = ray.cluster_resources()["CPU"] - world_size * self.cpus_per_worker
            ray.data.DataContext.get_current().execution_options.resource_limits = (
                ray.data.ExecutionResources.for_limits(cpu=left)
            )
        threading.Thread(
            target=self._produce, args=(first_step, world_size, self.queues, self.stop_producer), daemon=True
        ).start()

    async def start_early(self, first_step: int, world_size: int) -> None:
        """`start`, from who does not know whether the workers have come already."""
        if self.position is None:
            await self.start(first_step, world_size)

    async def next(self, rank: int) -> dict[str, Any]:
        """The rank's next block: {"blocks": [reference]}, empty at the end.

        Else {"error": message, "final": whether starting again would meet the same}.
        """
        self.dealt = True
        item: dict[str, Any] = await self.queues[rank].get()
        self.in_use[rank].append(item)
        return item

    async def report(self, found: list[Broken | PartlyUsed]) -> None:
        """Called by data tasks. Stops the run when more than the allowed share of the data set is broken."""
        self._add(*self.findings.add(found))
        if not self.too_many_broken and (reason := self.findings.too_many()):
            self.too_many_broken = True
            self._fail(reason, final=True)

    async def tell(self, event: Any) -> None:
        """Something for the driver, from a rank."""
        self._add(event)

    async def tell_and_wait(self, event: Any) -> None:
        """`tell`, for a rank that waits until the driver has acknowledged this and all before it."""
        self._add(event)
        self.waiting.append(acknowledged := asyncio.Event())
        await acknowledged.wait()

    async def take_news(self, wait_s: float = 0.0) -> list[Any]:
        """What ranks told, each broken sample once (`Broken`), and what of images is left out, since the last call.

        wait_s: how long to wait where there is nothing yet. A call acknowledges what the call before it took.
        """
        for acknowledged in self.taken:
            acknowledged.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.has_news.wait(), wait_s)
        self.has_news.clear()
        self.taken, self.waiting = self.waiting, []
        news, self.news = self.news, []
        return news

    async def count_broken(self) -> int:
        """How many samples could not be read so far."""
        return len(self.findings.broken)

    async def request_stop(self) -> None:
        """Asks the run to end at its next look, with a checkpoint."""
        self.stopping = True

    async def request_checkpoint(self) -> None:
        """Asks the run to save one at its next look."""
        self.checkpoint_wanted = True

    async def checkpoint_pending(self) -> bool:
        """Whether that is still to be done."""
        return self.checkpoint_wanted

    async def look(self, saved: bool) -> tuple[bool, bool]:
        """What rank 0 is asked to do: (stop, save a checkpoint). saved: whether it has since the look before."""
        self.checkpoint_wanted = self.checkpoint_wanted and not saved
        return self.stopping, self.checkpoint_wanted

    def _add(self, *events: Any) -> None:
        if events:
            self.news += events
            self.has_news.set()

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


def dealt_blocks(dealer: Any, rank: int) -> Iterator[dict[str, np.ndarray]]:
    """A rank's blocks from a dealer that has started, to the end; the next is asked for while one is used.

    Raises UserError when too much of the data is broken, RuntimeError when the stream failed.
    """
    ahead = dealer.next.remote(rank)
    while True:
        answer = ray.get(ahead)
        if "error" in answer:
            raise (UserError if answer["final"] else RuntimeError)(answer["error"])
        if not answer["blocks"]:
            return
        block = ray.get(answer["blocks"][0])
        ahead = dealer.next.remote(rank)
        yield BlockAccessor.for_block(block).to_numpy()


def quiet_ray_data() -> None:
    """Order, block size and silence for every dataset made in this process."""
    import logging

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.target_max_block_size = 4 * BLOCK_BYTES * MAX_STEPS_PER_BLOCK  # one task, one block
    context.raise_original_map_exception = True  # the user's error, not Ray's advice about it
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def without_helpers() -> None:
    """Ray Data in this process does without its two helpers, which are a process each and import as much as this one.

    One keeps statistics for a dashboard. The other shares out, among datasets that run at a time, the nodes that an
    autoscaler starts for them; before it has answered nothing is made. On a cluster without dashboard and autoscaler
    they serve nobody.
    """
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler import AutoscalingCoordinator, rate_based_cluster_autoscaler

    class AllNodes(AutoscalingCoordinator):  # type: ignore[misc]
        """All that the cluster has, and no more to come."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}

        def request_resources(self, *_: Any, **__: Any) -> None:
            pass

        def cancel_request(self) -> None:
            pass

        def get_reserved_resources(self) -> dict[str, dict[str, float]]:
            return self.nodes

    rate_based_cluster_autoscaler.DefaultAutoscalingCoordinator = AllNodes
    for name in ("register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics"):
        setattr(stats._StatsManager, name, staticmethod(lambda *_, **__: None))
    stats._StatsManager.gen_dataset_id_from_stats_actor = staticmethod(lambda: uuid.uuid4().hex)


def start_dealer(config: StreamConfig, *, cpus_per_worker: float, alone: bool = False) -> Any:
    """Starts a dealer on this driver's node; it takes no CPU, and its data tasks take what training leaves.

    A dealer that dies is started again, and the restarted worker group tells it where to go on. alone: the cluster has
    neither a dashboard nor an autoscaler, and nodes neither come nor go.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return (
        ray.remote(Dealer)
        .options(num_cpus=0, max_concurrency=1000, max_restarts=-1, scheduling_strategy=here)
        .remote(config, cpus_per_worker=cpus_per_worker, alone=alone)
    )
