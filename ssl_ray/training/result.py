"""What is left of a run for its driver."""

from dataclasses import dataclass, field
from typing import Any

from ssl_ray.console import TrainStatus


@dataclass
class RunResult:
    """How a run ended.

    status: "finished", "stopped" (asked to, with a checkpoint), "collapsed" (stopped for an alarm, with a checkpoint)
    or "interrupted" (at once). summary: what rank 0 returned: steps, evaluations, images_per_second, and alarms, a line
    for each collapse that the last evaluation shows. checkpoint: path or URI of the last one. history: what
    this session showed. broken: images that could not be read.
    """

    status: str
    summary: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    history: list[TrainStatus] = field(default_factory=list)
    broken: int = 0
