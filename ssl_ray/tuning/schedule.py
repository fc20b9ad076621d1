"""How a search chooses values and which trials it lets go on: Ray Tune's parts, made from what the user chose."""

import math
import random
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.search.optuna import OptunaSearch

from ssl_ray.errors import UserError
from ssl_ray.tuning.objective import METRIC, TIME
from ssl_ray.tuning.plan import SearchPlan
from ssl_ray.tuning.population import Population
from ssl_ray.tuning.space import Choice, Integer, LogUniform, Quantized, Space, Uniform


@dataclass(frozen=True)
class Parts:
    """What `tune.TuneConfig` takes. space: path -> Tune's domain."""

    space: dict[str, Any]
    searcher: Any
    scheduler: Any
    num_samples: int


class Asha(tune.schedulers.ASHAScheduler):  # type: ignore[misc]
    """Successive halving that survives a restart.

    Tune keeps no scheduler's state, so the rungs of a resumed search would be empty: each trial brings its curve along.
    """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Called by Tune for each trial, new or restored."""
        super().on_trial_add(tune_controller, trial)
        for epoch, score in (trial.last_result or {}).get("curve", []):
            if not math.isfinite(score):
                continue
            self.on_trial_result(tune_controller, trial, {TIME: epoch, METRIC: score})


class Optuna(OptunaSearch):  # type: ignore[misc]
    """Learns from evaluations alone: a trial is heard of before its first one, and between two."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Called by Tune for each result."""
        if METRIC in result and not result.get("heartbeat"):
            super().on_trial_result(trial_id, result)


def make_parts(plan: SearchPlan, concurrent: int) -> Parts:
    """Tune's searcher and scheduler. Raises UserError where Optuna is wanted and not installed."""
    random.seed(plan.seed)  # PBT draws from here
    domains = {path: _domain(space) for path, space in plan.search.items()}
    if plan.grid is not None:
        domains = {path: tune.grid_search(list(values)) for path, values in plan.grid.items()}
    samples = 1 if plan.scheduler == "grid" else plan.trials
    if plan.scheduler == "optuna":
        return Parts(domains, _optuna(plan, concurrent), _asha(plan), samples)
    from ray.tune.search import BasicVariantGenerator

    if plan.scheduler == "pbt":
        # All trials are there from the beginning; the scheduler chooses which of them run.
        everyone = BasicVariantGenerator(random_state=plan.seed)
        return Parts(domains, everyone, _population(plan, concurrent), samples)
    searcher = BasicVariantGenerator(max_concurrent=concurrent, random_state=plan.seed)
    scheduler = _asha(plan) if plan.scheduler == "asha" else tune.schedulers.FIFOScheduler()
    return Parts(domains, searcher, scheduler, samples)


def _asha(plan: SearchPlan) -> Any:
    return Asha(
        time_attr=TIME,
        max_t=plan.max_epochs + 1,  # a trial at its last epoch ends by itself, with its last checkpoint
        grace_period=plan.grace,
        reduction_factor=plan.reduction,
    )


def _population(plan: SearchPlan, slots: int) -> Population:
    mutations = {path: _domain(plan.search[path]) for path in plan.mutated}
    return Population(slots=slots, interval=plan.interval, last=plan.max_epochs, mutations=mutations)


def _optuna(plan: SearchPlan, concurrent: int) -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "scheduler: optuna is not installed; pip install 'ssl-ray[tune]', or use --scheduler asha"
        ) from error
    import warnings

    from ray.tune.search import ConcurrencyLimiter

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module=r"optuna\.")
    # A quarter of the trials, two to ten, tell the sampler what the space looks like.
    start = min(10, max(2, math.ceil(plan.trials / 4)))
    sampler = optuna.samplers.TPESampler(seed=plan.seed, n_startup_trials=start)
    search = Optuna(metric=METRIC, mode="max", sampler=sampler)
    return ConcurrencyLimiter(search, max_concurrent=concurrent)


def _domain(space: Space) -> Any:
    match space:
        case Uniform():
            return tune.uniform(space.low, space.high)
        case LogUniform():
            return tune.loguniform(space.low, space.high)
        case Quantized():
            return tune.quniform(space.low, space.high, space.step)
        case Integer():
            return tune.randint(space.low, space.high + 1)
        case Choice():
            return tune.choice(list(space.values))
