"""Search spaces as plain data: an experiment file's SEARCH maps dotted paths of its recipe to these."""

from dataclasses import dataclass
from typing import Any

from ssl_ray.errors import UserError


@dataclass(frozen=True)
class Uniform:
    """Any number in [low, high], all equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UserError(f"{self}: low should be less than high")


@dataclass(frozen=True)
class LogUniform:
    """Any number in [low, high], 0 < low, all orders of magnitude equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise UserError(f"{self}: low should be greater than 0 and less than high")


@dataclass(frozen=True)
class Choice:
    """One of several values, all equally likely."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise UserError(f"{self}: give at least one value")


Space = Uniform | LogUniform | Choice
Search = dict[str, Space]
"""Dotted path -> space."""
