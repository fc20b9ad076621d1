"""Decodes every image of a source and reports what is broken, before a run does."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import cpu_count

import numpy as np

from ssl_ray.data.decode import BrokenImage, decode, left_out, pixel_mode
from ssl_ray.data.plan import Int64
from ssl_ray.data.sources.base import Source

_CHUNK = 64


@dataclass
class Report:
    """broken: (index, path, reason). sizes: (height, width) in pixels -> images. modes: PIL's L, RGB, ... -> images.

    left_out: what of an image is not used, in words -> paths.
    """

    checked: int = 0
    broken: list[tuple[int, str, str]] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def add(self, other: "Report") -> None:
        """Adds the findings of another part."""
        self.checked += other.checked
        self.broken += other.broken
        self.sizes += other.sizes
        self.modes += other.modes
        for what, paths in other.left_out.items():
            self.left_out.setdefault(what, []).extend(paths)


def verify(
    source: Source, on_progress: Callable[[int, int], None] | None = None, *, workers: int | None = None
) -> Report:
    """Decodes every image. on_progress: called with (images done, images in all). workers: threads."""
    total = source.info.num_samples
    chunks = (np.arange(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK))
    report = Report()
    # Threads are enough: decoding lets go of Python's lock.
    with ThreadPoolExecutor(workers or cpu_count() or 1) as pool:
        for part in pool.map(lambda chunk: _verify(source, chunk), chunks):
            report.add(part)
            if on_progress:
                on_progress(report.checked, total)
    return report


def _verify(source: Source, indices: Int64) -> Report:
    report = Report()
    for index, data in zip(indices.tolist(), source.read(indices), strict=True):
        report.checked += 1
        try:
            height, width = decode(data).shape[:2]
            mode, what = pixel_mode(data), left_out(data)
        except BrokenImage as error:
            report.broken.append((index, source.path(index), error.reason))
            continue
        report.sizes[height, width] += 1
        report.modes[mode] += 1
        if what:
            report.left_out.setdefault(what, []).append(source.path(index))
    return report
