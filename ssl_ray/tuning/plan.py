"""What a search will do, decided and checked before Ray starts: space, rungs, population, bounds."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ssl_ray.errors import UserError, nearest
from ssl_ray.recipe import Recipe, override, overrides
from ssl_ray.tuning.space import Choice, Integer, LogUniform, Quantized, Search, Space, Uniform, ends

SCHEDULERS = {
    "asha": "random values; at each rung only the best third goes on",
    "random": "random values; every trial to its end",
    "grid": "every combination; ranges at three points",
    "pbt": "a population; the worst take over the weights and rates of the best, changed a little",
    "optuna": "values proposed by Optuna's TPE; rungs as with asha",
}
REDUCTION = 3
GRID_POINTS = 3
DEFAULT_TRIALS = 12
# Of a run of E epochs: what PBT trains between two looks at the population.
PBT_ROUNDS = 4
# What may change in mid-training: numbers that the next step reads afresh. Everything else decides the shape of the
# weights, what they mean, or the course of the schedule.
_RATES = ("optimization.base_lr", "optimization.lr", "optimization.clip_grad_norm", "optimization.final_lr")
_RATES_OF = "optimization.optimizer."


@dataclass(frozen=True)
class SearchPlan:
    """A search, checked. max_epochs: of a trial. grace: epochs before the first rung. interval: epochs between PBT's
    exchanges. mutated: paths that PBT changes while it runs. grid: path -> values, for scheduler "grid".
    """

    scheduler: str
    search: Search
    trials: int
    max_epochs: int
    seed: int
    grace: int = 1
    reduction: int = REDUCTION
    interval: int = 1
    mutated: tuple[str, ...] = ()
    grid: dict[str, tuple[Any, ...]] | None = None

    @property
    def rungs(self) -> list[int]:
        """Epochs after which a trial may be stopped."""
        if self.scheduler not in ("asha", "optuna"):
            return []
        return [
            self.grace * self.reduction**k
            for k in range(32)
            if self.grace * self.reduction**k < self.max_epochs
        ]

    @property
    def most_epochs(self) -> int:
        """Trial-epochs if nothing is stopped."""
        return self.trials * self.max_epochs

    @property
    def expected_epochs(self) -> int:
        """Trial-epochs if at each rung just one in `reduction` goes on, rounded up."""
        total, alive, before = 0, self.trials, 0
        for rung in [*self.rungs, self.max_epochs]:
            total += alive * (rung - before)
            alive, before = math.ceil(alive / self.reduction), rung
        return total


def make_plan(
    recipe: Recipe,
    search: Search,
    *,
    scheduler: str,
    trials: int | None,
    max_epochs: int | None,
    seed: int,
    chosen: Iterable[str] = (),
) -> tuple[SearchPlan, Recipe]:
    """A checked plan, and the recipe of its trials: as long as `max_epochs`, judged at every rung.

    chosen: paths that the user set, which stay as they are. Raises UserError for an unknown scheduler or path, a value
    that does not fit its place, or a grid larger than `trials`.
    """
    if scheduler not in SCHEDULERS:
        raise UserError(f"scheduler: {scheduler!r}; {nearest(scheduler, SCHEDULERS)}")
    if not search:
        raise UserError(
            f"search: {recipe.name} has no space to search; name one, such as "
            "--search 'optimization.base_lr=loguniform(1e-3, 1e-1)'"
        )
    chosen = set(chosen)
    if max_epochs is not None:
        recipe = override(recipe, "training.epochs", max_epochs)
    epochs = recipe.training.epochs
    check_search(recipe, search)
    every = recipe.evaluation.every_epochs
    if every is None:
        raise UserError(
            "evaluation.every_epochs null: a search has to judge its trials; set a number of epochs"
        )
    steps = 1 if scheduler in ("random", "grid") else max(1, epochs // REDUCTION**2)
    if scheduler == "pbt":
        steps = max(1, epochs // PBT_ROUNDS)
    if "evaluation.every_epochs" in chosen:
        steps = every * math.ceil(steps / every)
    elif scheduler not in ("random", "grid"):
        recipe = override(recipe, "evaluation.every_epochs", steps)
    grid = None
    if scheduler == "grid":
        grid = {path: grid_values(space) for path, space in search.items()}
        size = math.prod(map(len, grid.values()))
        if trials is not None and size > trials:
            raise UserError(
                f"trials: the grid has {' x '.join(str(len(v)) for v in grid.values())} = {size} combinations, more "
                f"than --trials {trials}; search fewer values (--search), or use --scheduler asha"
            )
        trials = size
    mutated: tuple[str, ...] = ()
    if scheduler == "pbt":
        mutated = tuple(path for path, space in search.items() if may_change(path, space))
        if not mutated:
            raise UserError(
                "search: PBT needs a range of an optimisation key, such as --search "
                "'optimization.base_lr=loguniform(1e-3, 1e-1)'"
            )
        recipe = override(recipe, "training.keep_checkpoints", max(4, recipe.training.keep_checkpoints))
    plan = SearchPlan(
        scheduler=scheduler,
        search=search,
        trials=trials or DEFAULT_TRIALS,
        max_epochs=epochs,
        seed=seed,
        grace=steps,
        interval=steps,
        mutated=mutated,
        grid=grid,
    )
    return plan, recipe


def may_change(path: str, space: Space) -> bool:
    """Whether PBT may change what is at `path` while a trial trains."""
    return not isinstance(space, Choice) and (path in _RATES or path.startswith(_RATES_OF))


def check_search(recipe: Recipe, search: Search) -> None:
    """Raises UserError for a path that the recipe has not (with the nearest match) or a value that does not fit."""
    for path, space in search.items():
        for value in ends(space):
            overrides(recipe, {path: value})


def grid_values(space: Space) -> tuple[Any, ...]:
    """The values of a space in a grid: all of a choice, three of a range, evenly spaced (or on the log scale)."""
    places = [i / (GRID_POINTS - 1) for i in range(GRID_POINTS)]
    match space:
        case Choice():
            return space.values
        case LogUniform():
            return tuple(space.low * (space.high / space.low) ** p for p in places)
        case Uniform():
            return tuple(space.low + (space.high - space.low) * p for p in places)
        case Quantized():
            count = int((space.high - space.low) / space.step + 1e-9)
            return tuple(dict.fromkeys(space.low + round(count * p) * space.step for p in places))
        case Integer():
            return tuple(dict.fromkeys(round(space.low + (space.high - space.low) * p) for p in places))
