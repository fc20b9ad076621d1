"""The stream's promises: order, equality over ranks and tasks, exact tails, broken samples replaced and counted."""

import collections
import hashlib
import inspect
import io
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_ray.data.batches import Batches
from ssl_ray.data.blocks import PartlyUsed, StreamConfig, block_steps, make_block
from ssl_ray.data.plan import Plan
from ssl_ray.data.source import DatasetInfo, open_dataset
from ssl_ray.data.stream import dealt_blocks, start_dealer
from ssl_ray.data.views import moco_v2_views
from ssl_ray.errors import UserError
from tests.data.tiffs import RGB, tiff

STEPS = 23


@dataclass(frozen=True)
class Jpegs:
    """Small JPEGs made from their index; those in `truncated` end in the middle."""

    num_samples: int = 200
    truncated: frozenset[int] = frozenset()

    @property
    def info(self) -> DatasetInfo:
        return DatasetInfo(
            name="jpegs", num_samples=self.num_samples, image_size=(40, 48), num_classes=None, digest="0"
        )

    def read(self, indices: np.ndarray) -> list[bytes]:
        return [self._jpeg(int(i)) for i in indices]

    def _jpeg(self, index: int) -> bytes:
        pixels = np.random.default_rng(index).integers(0, 255, (5, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        data = buffer.getvalue()
        return data[: len(data) // 2] if index in self.truncated else data

    def labels(self) -> None:
        return None

    def path(self, index: int) -> str:
        return f"jpegs/{index}.jpg"


def config(source: Jpegs | None = None, batch: int = 16, **kwargs: object) -> StreamConfig:
    source = source or Jpegs()
    plan = Plan(source.num_samples, batch, seed=7)
    return StreamConfig(source, moco_v2_views(size=24), plan, total_steps=STEPS, **kwargs)  # type: ignore[arg-type]


def fingerprint(columns: dict[str, np.ndarray], rows: slice) -> list[tuple[int, str]]:
    """(index, digest of both views) of each row."""
    return [
        (
            int(columns["index"][row]),
            hashlib.sha256(columns["view_0"][row].tobytes() + columns["view_1"][row].tobytes()).hexdigest(),
        )
        for row in range(*rows.indices(len(columns["index"])))
    ]


def expected(stream: StreamConfig, step: int) -> list[tuple[int, str]]:
    """Global batch of a step, made here, one sample at a time."""
    rows = []
    for index in stream.plan.global_indices(step):
        out = {n: np.zeros((1, *c.shape), c.dtype) for n, c in stream.pipeline.columns.items()}
        (blob,) = stream.source.read(np.array([index]))
        key = {"seed": stream.plan.seed, "epoch": stream.plan.epoch(step), "index": int(index)}
        stream.pipeline.write(blob, **key, out=out, row=0)
        rows += fingerprint(out | {"index": np.array([index])}, slice(None))
    return rows


def stream_of(stream: StreamConfig, world_size: int, first_step: int = 0) -> dict[int, list[tuple[int, str]]]:
    """Step -> rows of the global batch, as `world_size` ranks receive them through Ray."""
    import ray

    dealer = start_dealer(stream, cpus_per_worker=0.0)
    ray.get(dealer.start.remote(first_step, world_size))
    ranks = [
        Batches(
            dealt_blocks(dealer, rank),
            first_step=first_step,
            batch_size=stream.plan.global_batch_size // world_size,
            views=2,
            device=torch.device("cpu"),
        )
        for rank in range(world_size)
    ]
    received = {}
    for batches in zip(*ranks, strict=True):
        local = [
            fingerprint(
                {
                    "index": b.samples["index"].numpy(),
                    **{f"view_{i}": v.permute(0, 2, 3, 1).numpy() for i, v in enumerate(b.views)},
                },
                slice(None),
            )
            for b in batches
        ]
        received[batches[0].step] = [row for rows in zip(*local, strict=True) for row in rows]
    ray.kill(dealer)
    return received


def test_blocks_cover_all_steps_and_begin_short() -> None:
    blocks = list(block_steps(3, 60, most=16))
    assert [count for _, count in blocks][:5] == [1, 2, 4, 8, 16]
    assert [s for first, count in blocks for s in range(first, first + count)] == list(range(3, 60))
    assert list(block_steps(5, 5, most=4)) == []


def test_a_block_holds_the_rows_of_its_rank() -> None:
    stream = config()
    columns, broken = make_block(stream, first_step=10, num_steps=4, rank=1, world_size=2)
    assert broken == []
    wanted = [row for step in range(10, 14) for row in expected(stream, step)[1::2]]
    assert fingerprint(columns, slice(None)) == wanted


def test_broken_samples_are_replaced_by_the_plans_substitute_and_named() -> None:
    whole = config()
    bad = int(whole.plan.global_indices(0)[5])
    stream = config(Jpegs(truncated=frozenset({bad})))
    columns, broken = make_block(stream, first_step=0, num_steps=1, rank=0, world_size=1)
    assert [(b.index, b.path) for b in broken] == [(bad, f"jpegs/{bad}.jpg")]
    rows = fingerprint(columns, slice(None))
    good = expected(whole, 0)
    assert rows[:5] + rows[6:] == good[:5] + good[6:]
    assert rows[5][0] == stream.plan.substitute(0, bad, 0) != bad


@dataclass(frozen=True)
class _Scans(Jpegs):
    """TIFF files of two pages each; those of odd index are of one page of four bands."""

    def _jpeg(self, index: int) -> bytes:
        pixels = np.random.default_rng(index).integers(0, 255, (40, 48, 3), np.uint8)
        if index % 2:
            return tiff(np.dstack([pixels, pixels[..., 0]]), photometric=RGB, extra=(0,))
        return tiff(pixels, pixels, photometric=RGB)


PAGES = "more than one page: the first is used"
BANDS = "bands beyond the colours that are no alpha: they are not used"


def test_what_is_left_out_of_images_is_told_once_a_block() -> None:
    columns, found = make_block(config(_Scans()), first_step=0, num_steps=2, rank=0, world_size=1)
    assert len(columns["index"]) == 32
    first = {
        what: next(i for i in columns["index"] if i % 2 == odd) for what, odd in ((PAGES, 0), (BANDS, 1))
    }
    assert {image.what: image for image in found} == {
        what: PartlyUsed(f"jpegs/{index}.jpg", what) for what, index in first.items()
    }
    assert len(found) == 2


def test_what_is_left_out_of_images_is_told_once_a_run(ray_cluster: None) -> None:
    import ray

    dealer = start_dealer(config(_Scans()), cpus_per_worker=0.0)
    for path in ("a.tif", "b.tif"):
        ray.get(dealer.report.remote([PartlyUsed(path, PAGES), PartlyUsed(path, BANDS)]))
    assert ray.get(dealer.take_news.remote()) == [
        f"a.tif: {what}; `ssl-ray data verify` names all such images" for what in (PAGES, BANDS)
    ]
    assert ray.get(dealer.count_broken.remote()) == 0
    ray.kill(dealer)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_world_size_sees_the_same_global_batches(ray_cluster: None, world_size: int) -> None:
    stream = config()
    received = stream_of(stream, world_size)
    assert received == {step: expected(stream, step) for step in range(STEPS)}


def test_the_dealer_keeps_nothing_of_blocks_that_are_used_up(ray_cluster: None) -> None:
    import psutil
    import ray

    def memory(_: object) -> int:
        now = psutil.Process().memory_info()
        return int(now.rss - now.shared)

    # One row per rank and step: 16 steps are a block of 56 KB, which Ray keeps in its owner's memory.
    blocks = 300
    stream = replace(config(batch=2), total_steps=16 * blocks)
    dealer = start_dealer(stream, cpus_per_worker=0.0)
    ray.get(dealer.start.remote(0, 2))
    made = [
        Batches(dealt_blocks(dealer, rank), first_step=0, batch_size=1, views=2, device=torch.device("cpu"))
        for rank in range(2)
    ]
    early = 0
    for batch, _ in zip(*made, strict=True):
        if batch.step == 16 * 50:
            early = ray.get(dealer.__ray_call__.remote(memory))
    grown = ray.get(dealer.__ray_call__.remote(memory)) - early
    ray.kill(dealer)
    dealt = 2 * (blocks - 50) * 16 * 2 * 24 * 24 * 3
    assert grown < dealt / 4, f"{grown / 2**20:.1f} MB of {dealt / 2**20:.1f}"


def test_the_number_of_data_tasks_changes_nothing(ray_cluster: None) -> None:
    import ray

    @ray.remote(num_cpus=3)
    class Holder:
        def ready(self) -> bool:
            return True

    many = stream_of(config(), 2)
    holder = Holder.remote()
    ray.get(holder.ready.remote())
    one_at_a_time = stream_of(config(), 2)
    ray.kill(holder)
    assert one_at_a_time == many


def test_starting_at_a_step_gives_exactly_the_tail(ray_cluster: None) -> None:
    stream = config()
    assert stream_of(stream, 2, first_step=9) == {step: expected(stream, step) for step in range(9, STEPS)}


def test_windows_are_joined_without_a_seam(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = config()
    from ssl_ray.data import stream as module

    monkeypatch.setattr(module, "WINDOW_BLOCKS", 4)
    windows = list(module.Dealer._windows(_Configured(stream), 0, 2))  # type: ignore[arg-type]
    assert len(windows) > 1
    steps = [
        (row["rank"], row["first_step"] + i)
        for window in windows
        for row in window
        for i in range(row["num_steps"])
    ]
    assert sorted(steps) == [(rank, step) for rank in (0, 1) for step in range(STEPS)]


@dataclass
class _Configured:
    config: StreamConfig


def test_a_few_broken_images_are_reported_once_each(ray_cluster: None) -> None:
    import ray

    stream = config(Jpegs(truncated=frozenset({3, 77})), max_broken=0.02)
    dealer = start_dealer(stream, cpus_per_worker=0.0)
    ray.get(dealer.start.remote(0, 1))
    batches = Batches(
        dealt_blocks(dealer, 0), first_step=0, batch_size=16, views=2, device=torch.device("cpu")
    )
    seen = [int(i) for batch in batches for i in batch.samples["index"]]
    assert len(seen) == STEPS * 16
    assert not {3, 77} & set(seen)
    news = ray.get(dealer.take_news.remote())
    assert sorted(b.path for b in news) == ["jpegs/3.jpg", "jpegs/77.jpg"]
    assert all("truncated" in b.reason.lower() for b in news)
    assert ray.get(dealer.take_news.remote()) == []
    ray.kill(dealer)


def test_too_many_broken_images_stop_the_run_with_the_list(ray_cluster: None) -> None:
    import ray

    stream = config(Jpegs(truncated=frozenset(range(0, 200, 4))), max_broken=0.01)
    dealer = start_dealer(stream, cpus_per_worker=0.0)
    ray.get(dealer.start.remote(0, 1))
    batches = Batches(
        dealt_blocks(dealer, 0), first_step=0, batch_size=16, views=2, device=torch.device("cpu")
    )
    with pytest.raises(UserError, match=r"more than the allowed share 0\.01: jpegs/\d+\.jpg"):
        collections.deque(batches, maxlen=0)
    ray.kill(dealer)


@dataclass(frozen=True)
class _Slow(Jpegs):
    """Notes when a task begins to read and when it ends."""

    log: str = ""

    def read(self, indices: np.ndarray) -> list[bytes]:
        began = time.monotonic()
        time.sleep(0.4)  # of 23 steps together longer than another process takes to start
        with open(self.log, "a") as file:
            file.write(f"{began} {time.monotonic()}\n")
        return super().read(indices)


@pytest.mark.parametrize(("cpus_per_worker", "most"), [(3.0, 1), (2.0, 2)])
def test_data_tasks_leave_the_workers_their_cpus(
    ray_cluster: None, tmp_path: Path, cpus_per_worker: float, most: int
) -> None:
    """Also of workers that are yet to come, on a cluster of four CPUs that is the command's own."""
    import ray

    log = tmp_path / "log"
    dealer = start_dealer(config(_Slow(log=str(log))), cpus_per_worker=cpus_per_worker, alone=True)
    ray.get(dealer.start.remote(0, 1))
    collections.deque(dealt_blocks(dealer, 0), maxlen=0)
    ray.kill(dealer)
    times = [tuple(map(float, line.split())) for line in log.read_text().splitlines()]
    assert max(sum(began <= start < ended for began, ended in times) for start, _ in times) == most


def test_news_come_at_once_and_are_acknowledged_when_the_driver_comes_again(ray_cluster: None) -> None:
    import ray

    dealer = start_dealer(config(), cpus_per_worker=0.0)
    asked = dealer.take_news.remote(60.0)
    assert not ray.wait([asked], timeout=1.0)[0], "there are none"
    waiting = dealer.tell_and_wait.remote("first")
    assert ray.get(asked, timeout=30) == ["first"]
    assert not ray.wait([waiting], timeout=1.0)[0], "the driver is at it"
    ray.get(dealer.tell.remote("second"))
    assert ray.get(dealer.take_news.remote()) == ["second"]
    ray.get(waiting, timeout=30)
    assert ray.get(dealer.take_news.remote()) == []
    ray.kill(dealer)


def test_a_source_that_fails_is_heard_by_every_rank(ray_cluster: None) -> None:
    import ray

    dealer = start_dealer(config(_Gone()), cpus_per_worker=0.0)
    ray.get(dealer.start.remote(0, 2))
    for rank in range(2):
        batches = Batches(
            dealt_blocks(dealer, rank), first_step=0, batch_size=8, views=2, device=torch.device("cpu")
        )
        with pytest.raises(RuntimeError, match="the disk is gone"):
            next(batches)
    ray.kill(dealer)


@dataclass(frozen=True)
class _Gone(Jpegs):
    def read(self, indices: np.ndarray) -> list[bytes]:
        raise OSError("the disk is gone")


def test_the_default_data_set_streams() -> None:
    dataset = open_dataset("fashion")
    stream = StreamConfig(
        dataset.train, moco_v2_views(size=28), Plan(dataset.train.info.num_samples, 32, 0), total_steps=2
    )
    columns, broken = make_block(stream, first_step=0, num_steps=2, rank=0, world_size=1)
    assert broken == []
    assert columns["view_0"].shape == (64, 28, 28, 3)
    assert columns["view_0"].std() > 10


def test_ray_data_has_what_it_is_told_to_do_without() -> None:
    """Private names of Ray Data: a release that has others fails here, rather than start its helpers unnoticed."""
    from ray.data._internal import stats
    from ray.data._internal.cluster_autoscaler import AutoscalingCoordinator, rate_based_cluster_autoscaler

    assert rate_based_cluster_autoscaler.DefaultAutoscalingCoordinator.__mro__[1] is AutoscalingCoordinator
    for name in (
        "register_dataset_to_stats_actor",
        "update_execution_metrics",
        "update_iteration_metrics",
        "gen_dataset_id_from_stats_actor",
    ):
        assert isinstance(inspect.getattr_static(stats._StatsManager, name), staticmethod)
