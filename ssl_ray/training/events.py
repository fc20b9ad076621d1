"""What workers and the controller have to say to the driver, beside readings (`TrainStatus`), evaluations and notes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Begun:
    """A worker group trains: of so many workers, from this step on."""

    step: int
    world_size: int


@dataclass(frozen=True)
class Metrics:
    """For the run's record. timestamp: milliseconds since 1970."""

    values: dict[str, float]
    step: int
    timestamp: int


@dataclass(frozen=True)
class Flush:
    """A rank waits until a kill would lose none of its metrics."""


@dataclass(frozen=True)
class Failed:
    """Workers have ended, and the group is started again from its last checkpoint. cause: a line for each rank."""

    causes: dict[int, str]


@dataclass(frozen=True)
class Hung:
    """A worker's step took too long, and the worker ended itself. stacks: where each of its threads was."""

    rank: int
    minutes: float
    stacks: str


@dataclass(frozen=True)
class LeftOut:
    """An image that an evaluation could not read, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Fatal:
    """The run cannot go on, and starting it again would not help."""

    message: str
