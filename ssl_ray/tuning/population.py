"""Population based training (Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846) for a cluster of any size.

Tune's own asks for one that holds the whole population: what its generator of trials is told of concurrency also
bounds the population, and where the last trial of a round fails, its synchronous form waits for ever.
"""

import random
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from ssl_ray.tuning.objective import METRIC, TIME


class Population(PopulationBasedTraining):  # type: ignore[misc]
    """All trials train to the end of a round, `slots` at a time; then the worst quarter takes over from the best.

    A trial that waits is paused: its training has ended with a checkpoint, its workers are given back. So scores are
    compared at the same epoch, and a search of 8 trials is the same population on one GPU as on eight.

    interval: epochs of a round. last: epoch at which trials end by themselves.
    """

    def __init__(self, *, slots: int, interval: int, last: int, mutations: dict[str, Any]) -> None:
        super().__init__(
            time_attr=TIME,
            perturbation_interval=interval,
            hyperparam_mutations=mutations,
            require_attrs=False,
            log_config=False,
            synch=True,  # or Tune refuses that a paused trial takes over
        )
        self.slots, self.interval, self.last = slots, interval, last
        self.round_ends = float(interval)
        self.takers: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Called by Tune for each trial, new or restored: it waits to be chosen."""
        super().on_trial_add(tune_controller, trial)
        if trial.status == Trial.PENDING:
            trial.set_status(Trial.PAUSED)
        # Of a restored one: the epoch it goes on from, for its last report may be one that no checkpoint followed.
        kept = trial.latest_checkpoint_result
        result = kept.metrics if kept is not None else {}
        if METRIC in result:
            self._save_trial_state(self._trial_state[trial], result[TIME], result, trial)
            self.round_ends = max(self.round_ends, result[TIME] // self.interval * self.interval)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Called by Tune: a trial that has reached the end of the round waits for the others."""
        if METRIC not in result:
            return str(TrialScheduler.CONTINUE)
        self._save_trial_state(self._trial_state[trial], result[TIME], result, trial)
        waits = self.round_ends <= result[TIME] < self.last
        return str(TrialScheduler.PAUSE if waits else TrialScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Called by Tune at every turn. Those that took over go first, while what they take is surely kept."""
        # A process that still ends holds its trial's folder and its workers.
        if tune_controller._tune_controller._stopping_actors:
            return None
        live = [trial for trial in tune_controller.get_trials() if not trial.is_finished()]
        waiting = [trial for trial in live if trial.status == Trial.PAUSED]
        if len(live) - len(waiting) >= self.slots:
            return None
        able = [trial for trial in waiting if self._may_go_on(trial)]
        if not able and len(waiting) == len(live):
            self._exchange(tune_controller)
            able = [trial for trial in waiting if self._may_go_on(trial)]
        chosen = min(able, key=lambda t: (self._epoch(t), t.trial_id not in self.takers), default=None)
        if chosen is not None:
            self.takers.discard(chosen.trial_id)
        return chosen

    def _may_go_on(self, trial: Trial) -> bool:
        """A trial that was killed at its last epoch has only to end: it takes over from nobody."""
        return self._epoch(trial) < self.round_ends or self._epoch(trial) >= self.last

    def _exchange(self, tune_controller: Any) -> None:
        worst, best = self._quantiles()
        for trial in worst:
            donor = random.choice(best)
            self._trial_state[donor].last_checkpoint = donor.checkpoint
            self._exploit(tune_controller, trial, donor)
            self.takers.add(trial.trial_id)
        self.round_ends += self.interval

    def _epoch(self, trial: Trial) -> float:
        return float(self._trial_state[trial].last_train_time)
