"""What a search will do, before it starts."""

import pytest
from ray import tune

from ssl_ray import experiments
from ssl_ray.data.source import open_dataset
from ssl_ray.errors import UserError
from ssl_ray.tuning.objective import choose_objective
from ssl_ray.tuning.plan import GRID_POINTS, grid_values, make_plan, may_change
from ssl_ray.tuning.schedule import make_parts
from ssl_ray.tuning.space import Choice, Integer, LogUniform, Quantized, Uniform

SMALL = experiments.load("moco").SMALL
SEARCH = experiments.load("moco").SEARCH


def plan(scheduler="asha", search=SEARCH, trials=9, epochs=9, chosen=(), recipe=SMALL):
    return make_plan(
        recipe, search, scheduler=scheduler, trials=trials, max_epochs=epochs, seed=0, chosen=chosen
    )


def test_asha_is_judged_at_every_rung() -> None:
    made, recipe = plan()
    assert made.rungs == [1, 3]
    assert all(rung % recipe.evaluation.every_epochs == 0 for rung in made.rungs)
    assert recipe.training.epochs == 9
    assert made.most_epochs == 81
    assert made.expected_epochs == 9 * 1 + 3 * 2 + 1 * 6


@pytest.mark.parametrize("epochs", [2, 16, 100])
def test_rungs_are_where_tune_has_them(epochs: int) -> None:
    made, _ = plan(epochs=epochs)
    asha = make_parts(made, 1).scheduler
    theirs = sorted(m for m, _ in asha._brackets[0]._rungs if m < epochs)
    assert made.rungs == theirs


def test_a_cadence_that_the_user_set_stays() -> None:
    made, recipe = plan(
        epochs=100,
        chosen=["evaluation.every_epochs"],
        recipe=experiments.load("mae").SMALL,
        search=experiments.load("mae").SEARCH,
    )
    assert recipe.evaluation.every_epochs == 5
    assert made.grace % 5 == 0


def test_every_recipe_has_a_search_that_can_start() -> None:
    for name in experiments.names():
        module = experiments.load(name)
        for scheduler in ("asha", "pbt"):
            make_plan(module.SMALL, module.SEARCH, scheduler=scheduler, trials=2, max_epochs=None, seed=0)


def test_a_grid_is_all_combinations_or_a_refusal() -> None:
    search = {"training.seed": Choice((1, 2)), "optimization.base_lr": LogUniform(1e-3, 1e-1)}
    made, _ = plan("grid", search, trials=None)
    assert made.trials == 2 * GRID_POINTS
    parts = make_parts(made, 1)
    assert parts.num_samples == 1
    assert parts.space["training.seed"] == tune.grid_search([1, 2])
    with pytest.raises(UserError, match="2 x 3 = 6 combinations"):
        plan("grid", search, trials=5)


def test_the_points_of_a_grid() -> None:
    assert grid_values(LogUniform(1e-3, 1e-1)) == pytest.approx((1e-3, 1e-2, 1e-1))
    assert grid_values(Uniform(0, 1)) == (0, 0.5, 1)
    assert grid_values(Integer(1, 2)) == (1, 2)
    assert grid_values(Quantized(0, 1, 0.25)) == (0, 0.5, 1)


def test_pbt_changes_rates_alone() -> None:
    made, recipe = plan("pbt")
    assert made.mutated == ("optimization.base_lr",)
    assert recipe.training.keep_checkpoints >= 4
    assert may_change("optimization.optimizer.weight_decay", LogUniform(1e-6, 1e-2))
    assert not may_change("algorithm.backbone.width", Integer(8, 64))
    assert not may_change("training.global_batch_size", Integer(8, 64))
    with pytest.raises(UserError, match="PBT needs a range of an optimisation key"):
        plan("pbt", {"algorithm.momentum": Uniform(0.9, 0.99)})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scheduler": "ahsa"}, "did you mean 'asha'"),
        ({"search": {}}, "no space to search"),
        ({"search": {"optimization.base_rl": Uniform(0, 1)}}, "did you mean 'base_lr'"),
        ({"search": {"training.log_steps": Uniform(1.5, 2.5)}}, "training.log_steps"),
        ({"search": {"optimization.base_lr": Uniform(-1, 1)}}, "optimization.base_lr"),
    ],
)
def test_a_wrong_search_is_refused(options, said: str) -> None:
    with pytest.raises(UserError) as error:
        plan(**options)
    assert said in str(error.value)


def test_the_same_seed_tries_the_same_values() -> None:
    from ray.tune.experiment import Experiment

    def sampled(seed: int) -> list[dict[str, float]]:
        made, _ = make_plan(SMALL, SEARCH, scheduler="random", trials=3, max_epochs=2, seed=seed)
        parts = make_parts(made, 2)
        searcher = parts.searcher
        searcher.max_concurrent = 0
        searcher.add_configurations([Experiment("x", lambda _: None, num_samples=3, config=parts.space)])
        return [searcher.next_trial().config for _ in range(3)]

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_the_objective_follows_the_labels() -> None:
    digits = open_dataset("digits")
    assert choose_objective(None, digits).key == "val/knn_top1"
    unlabelled = type(digits)(digits.train, None, digits.note)
    assert choose_objective(None, unlabelled).name == "rankme"
    with pytest.raises(UserError, match="knn_top1 needs labels"):
        choose_objective("knn_top1", unlabelled)
    with pytest.raises(UserError, match="there are knn_top1, rankme, embedding_std"):
        choose_objective("knn", digits)


def test_a_restored_trial_brings_its_rungs_along() -> None:
    from types import SimpleNamespace

    made, _ = plan(epochs=9)
    asha = make_parts(made, 1).scheduler
    asha.set_search_properties("objective", "max")
    before = SimpleNamespace(trial_id="a", last_result={"curve": [[0, 0.1], [1, 0.8], [3, 0.9]]})
    fresh = SimpleNamespace(trial_id="b", last_result={})
    for trial in (before, fresh):
        asha.on_trial_add(None, trial)
    assert asha.on_trial_result(None, fresh, {"epoch": 0.0}) == "CONTINUE", "a heartbeat"
    assert asha.on_trial_result(None, fresh, {"epoch": 1.0, "objective": 0.2}) == "STOP"


def test_optuna_proposes_values_of_the_space() -> None:
    pytest.importorskip("optuna")
    made, _ = plan("optuna")
    parts = make_parts(made, 2)
    parts.searcher.set_search_properties("objective", "max", parts.space)
    proposed = parts.searcher.suggest("a")
    assert proposed.keys() == SEARCH.keys()
    assert 1e-3 <= proposed["optimization.base_lr"] <= 5e-2
    assert proposed["algorithm.momentum"] in SEARCH["algorithm.momentum"].values
