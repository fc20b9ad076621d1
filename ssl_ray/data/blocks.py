"""Blocks of the stream: a rank's rows of some steps, made from the plan without Ray and without torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ssl_ray.data.decode import left_out
from ssl_ray.data.pipeline import ViewPipeline, make_batch
from ssl_ray.data.plan import Int64, Plan
from ssl_ray.data.source import Source
from ssl_ray.errors import UserError

MAX_SUBSTITUTES = 32


@dataclass(frozen=True)
class StreamConfig:
    """What a data task needs to make any block of a run.

    max_broken: share of the data set's samples that may turn out unreadable before the run stops. with_labels: blocks
    have a column `label`, for an algorithm that asks for it.
    """

    source: Source
    pipeline: ViewPipeline
    plan: Plan
    total_steps: int
    max_broken: float = 0.01
    with_labels: bool = False

    @cached_property
    def labels(self) -> Int64:
        """(N,) class of every sample; read once in a process that makes blocks with labels."""
        labels = self.source.labels()
        if labels is None:
            raise UserError(f"{self.source.info.name}: the algorithm learns from labels, and there are none")
        return labels

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


@dataclass(frozen=True)
class PartlyUsed:
    """An image of which something is left out, and what that is; of several the first."""

    path: str
    what: str


class Findings:
    """What reading a run's images has found so far: samples that cannot be read, and images that are used in part.

    broken: index -> the sample, each once.
    """

    def __init__(self, config: StreamConfig) -> None:
        self.num_samples, self.max_broken = config.plan.num_samples, config.max_broken
        self.broken: dict[int, Broken] = {}
        self._left_out: set[str] = set()

    def add(self, found: Iterable[Broken | PartlyUsed]) -> list[Broken | str]:
        """Returns what of it is new, to be told: each broken sample once, and once what of images is left out."""
        new: list[Broken | str] = []
        for image in found:
            if isinstance(image, PartlyUsed):
                if image.what not in self._left_out:
                    self._left_out.add(image.what)
                    new.append(f"{image.path}: {image.what}; `ssl-ray data verify` names all such images")
            elif image.index not in self.broken:
                self.broken[image.index] = image
                new.append(image)
        return new

    def too_many(self) -> str | None:
        """Why the run has to stop, once more than the allowed share of the data set is broken."""
        count = len(self.broken)
        if count <= self.max_broken * self.num_samples:
            return None
        listed = "; ".join(f"{b.path} ({b.reason})" for b in list(self.broken.values())[:20])
        more = f"; and {count - 20} more" if count > 20 else ""
        return (
            f"data.max_broken: {count} of {self.num_samples} images are unreadable, more than the allowed share "
            f"{self.max_broken:g}: {listed}{more}; mend or remove them, or raise data.max_broken"
        )


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
    """The views of a rank's rows of some steps, in order. Returns (columns, list of `Broken` and `PartlyUsed`).

    A sample that cannot be read is replaced by the plan's substitute for it; its `index` column names the substitute.
    """
    plan, source, pipeline = config.plan, config.source, config.pipeline
    parts, broken, partly = [], [], dict[str, PartlyUsed]()
    for step in range(first_step, first_step + num_steps):
        epoch = plan.epoch(step)
        indices = plan.indices(step, rank, world_size)
        encoded = source.read(indices)
        columns, failures = make_batch(pipeline, encoded, indices, plan.seed, epoch)
        unread = {row for row, _ in failures}
        for row, data in enumerate(encoded):
            if row not in unread and (what := left_out(data)) and what not in partly:
                partly[what] = PartlyUsed(source.path(int(indices[row])), what)
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
        if config.with_labels:
            columns["label"] = config.labels[columns["index"]]  # of the substitute, where there is one
        parts.append(columns)
    if num_steps == 1:
        return parts[0], [*broken, *partly.values()]
    columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return columns, [*broken, *partly.values()]
