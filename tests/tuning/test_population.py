"""The rounds of a population, under Ray Tune itself; the trials only count."""

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from ssl_ray.tuning.objective import METRIC, TIME
from ssl_ray.tuning.population import Population

pytestmark = pytest.mark.process
SLOTS, TRIALS, LAST = 2, 5, 3
SAVES_S = 0.6


class Counting(tune.Trainable):  # type: ignore[misc]
    """Each epoch earns what `gain` says; the trial of `fails` ends with an error in its first."""

    def setup(self, config: dict[str, Any], log: str, fails: float) -> None:
        self.log, self.fails = Path(log), fails
        self.epoch, self.earned = 0, 0.0
        self.note("begins")

    def step(self) -> dict[str, Any]:
        time.sleep(0.2)
        if self.config["gain"] == self.fails:
            raise ValueError("as it was told to")
        self.epoch += 1
        self.earned += self.config["gain"]
        self.note("reports")
        return {TIME: self.epoch, METRIC: self.earned, "done": self.epoch == LAST}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.note("saves")
        time.sleep(SAVES_S)
        (Path(checkpoint_dir) / "state.json").write_text(json.dumps([self.epoch, self.earned]))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.epoch, self.earned = json.loads((Path(checkpoint_dir) / "state.json").read_text())

    def cleanup(self) -> None:
        time.sleep(0.5)
        self.note("ends")

    def note(self, what: str) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps([what, self.trial_id, self.epoch, self.earned]) + "\n")


def search(folder: Path, address: str, fails: float, again: bool) -> None:
    """The population's search in `folder`, where every note of its trials goes to "log" and what came of it to
    "results.json" (number of errors, epochs of each trial); again: what is left of it."""
    trainable = tune.with_resources(
        tune.with_parameters(Counting, log=str(folder / "log"), fails=fails),
        tune.PlacementGroupFactory([{"memory": 1.0}]),
    )
    ray.init(address=address, log_to_driver=False)
    if again:
        tuner = tune.Tuner.restore(str(folder / "tune"), trainable)
    else:
        scheduler = Population(slots=SLOTS, interval=1, last=LAST, mutations={"gain": tune.uniform(10, 20)})
        tuner = tune.Tuner(
            trainable,
            param_space={"gain": tune.grid_search([0.0, 1.0, 2.0, 3.0, 4.0])},
            tune_config=tune.TuneConfig(metric=METRIC, mode="max", reuse_actors=False, scheduler=scheduler),
            run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0),
        )
    results = tuner.fit()
    epochs = [(result.metrics or {}).get(TIME) for result in results]
    (folder / "results.json").write_text(json.dumps([results.num_errors, epochs]))


def begin(
    folder: Path, address: str, fails: float = -1.0, again: bool = False
) -> multiprocessing.process.BaseProcess:
    """The search in a process of its own: this one may have a Ray of its own, with another way to authenticate."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        process = multiprocessing.get_context("spawn").Process(
            target=search, args=(folder, address, fails, again)
        )
        process.start()
    return process


def results_of(process: multiprocessing.process.BaseProcess, folder: Path) -> tuple[int, list[int | None]]:
    process.join(timeout=180)
    assert process.exitcode == 0
    errors, epochs = json.loads((folder / "results.json").read_text())
    return errors, epochs


def notes(folder: Path) -> list[tuple[str, str, int, float]]:
    """What the trials noted: what, whose, in which epoch, with how much."""
    file = folder / "log"
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def test_rounds(tmp_path: Path, two_cpus: str) -> None:
    """The last of the first round never reports, and the others go on without it."""
    errors, _ = results_of(begin(tmp_path, two_cpus, fails=4.0), tmp_path)
    log = notes(tmp_path)

    alive: set[str] = set()
    for what, trial, _, _ in log:
        if what == "begins":
            assert trial not in alive, "its own last process has ended"
            alive.add(trial)
        elif what == "ends":
            alive.discard(trial)
        assert len(alive) <= SLOTS

    reports = [(trial, epoch, earned) for what, trial, epoch, earned in log if what == "reports"]
    members = TRIALS - 1
    assert [epoch for _, epoch, _ in reports] == sorted(epoch for _, epoch, _ in reports), "round by round"
    assert len(reports) == members * LAST
    assert errors == TRIALS - members

    worst = min(range(members), key=lambda i: reports[i][2])
    best = max(earned for _, epoch, earned in reports if epoch == 1)
    second = {trial: earned for trial, epoch, earned in reports if epoch == 2}
    assert best + 0.8 * best <= second[reports[worst][0]], (
        "the worst goes on from the best, with another gain"
    )
    last = max(i for i, (what, _, epoch, _) in enumerate(log) if (what, epoch) == ("reports", 1))
    begun = [trial for what, trial, *_ in log[last:] if what == "begins" and trial in second]
    assert reports[worst][0] in begun[:SLOTS], "and it goes first"


def test_a_killed_search_goes_on_in_its_round(
    tmp_path: Path, two_cpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the second round has a report, and Tune's record of it, that no checkpoint has followed yet."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")  # or Tune may forget the last seconds
    first = begin(tmp_path, two_cpus)
    deadline = time.monotonic() + 120
    while sum(what == "saves" for what, *_ in notes(tmp_path)) < TRIALS + SLOTS:
        assert first.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(SAVES_S / 3)
    first.kill()
    first.join()
    time.sleep(2)  # its trials end with it
    before = len(notes(tmp_path))

    assert results_of(begin(tmp_path, two_cpus, again=True), tmp_path) == (0, [LAST] * TRIALS)
    epochs = [epoch for what, _, epoch, _ in notes(tmp_path)[before:] if what == "reports"]
    assert epochs == sorted(epochs), "round by round"
    assert min(epochs) == 2, "whoever waited at the end of the first round has kept it"
    assert len(epochs) <= TRIALS * (LAST - 1)
