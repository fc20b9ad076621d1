"""Runs are chosen, put into order and compared as asked."""

import pytest

from ssl_ray.errors import UserError
from ssl_ray.trained.runs import (
    COLUMNS,
    Filter,
    best,
    differing_params,
    facts,
    lower_is_better,
    nested,
    order,
    row,
)
from tests.trained.past import past

KNN = "val/knn_top1"
A = past(
    "a", start=100.0, end=400.0, metrics={KNN: 0.7, "train/loss": 2.0}, params={"name": "moco", "t": "0.2"}
)
B = past(
    "b", start=300.0, end=None, status="running", metrics={KNN: 0.8}, params={"name": "moco", "t": "0.1"}
)
C = past(
    "c",
    start=200.0,
    end=210.0,
    status="failed",
    data="photos",
    source="/data/photos",
    metrics={"train/loss": 1.0, KNN: float("nan")},
    params={"name": "mae", "views.size": "64"},
)
RUNS = [B, C, A]


def names(runs: list) -> str:
    return "".join(run.name for run in runs)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, "bca"),
        ({"algorithm": "moco"}, "ba"),
        ({"status": "failed"}, "c"),
        ({"status": "killed"}, ""),
        ({"data": "photo"}, "c"),
        ({"data": "/data/"}, "c"),
        ({"since": "3m"}, "bc"),
        ({"since": "0.05h"}, "bc"),
        ({"where": [f"{KNN}>0.7"]}, "b"),
        ({"where": [f"{KNN} >= 0.7"]}, "ba"),
        ({"where": ["t=0.20"]}, "a"),
        ({"where": ["t!=0.2"]}, "b"),
        ({"where": ["name=mae"]}, "c"),
        ({"where": ["views.size<100", "train/loss<=1"]}, "c"),
        ({"algorithm": "moco", "where": [f"{KNN}<0.75"]}, "a"),
    ],
)
def test_filter(asked: dict, found: str) -> None:
    assert names(Filter(**asked)(RUNS, now=380.0)) == found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"status": "finnished"}, "did you mean 'finished'?"),
        ({"algorithm": "mooc"}, "did you mean 'moco'?"),
        ({"since": "soon"}, "'soon' is no time; write 30m"),
        ({"where": ["val/knn>0.5"]}, f"did you mean '{KNN}'?"),
        ({"where": [KNN]}, "write a metric or parameter"),
        ({"where": ["name>moco"]}, "'moco' is not a number"),
    ],
)
def test_what_no_run_can_pass_is_said(asked: dict, said: str) -> None:
    with pytest.raises(UserError) as error:
        Filter(**asked)(RUNS)
    assert said in str(error.value)


def test_since_a_date() -> None:
    late = past("late", start=2e9)
    assert Filter(since="2026-01-31")([A, late]) == [late]


@pytest.mark.parametrize(
    ("key", "ordered"),
    [("started", "bca"), ("name", "abc"), ("duration", "acb"), (KNN, "bac"), ("train/loss", "cab")],
)
def test_order(key: str, ordered: str) -> None:
    assert names(order(RUNS, key)) == ordered


def test_order_by_what_no_run_has() -> None:
    with pytest.raises(UserError, match="did you mean 'started'"):
        order(RUNS, "start")


def test_best() -> None:
    assert names(best(RUNS, KNN)) == "ba", "NaN is no value"
    assert names(best(RUNS, KNN, lowest=True)) == "ab"
    assert names(best(RUNS, "train/loss")) == "ca", "a small loss is the good one"
    with pytest.raises(UserError, match="no run has 'loss'; allowed: train/loss"):
        best(RUNS, "loss")


def test_a_value_that_is_not_finite_never_wins() -> None:
    infinite = past("i", metrics={KNN: float("inf"), "train/loss": float("-inf")})
    assert names(best([infinite, *RUNS], KNN)) == "ba"
    assert names(best([infinite, *RUNS], "train/loss")) == "ca"
    assert names(order([infinite, *RUNS], KNN)) == "baic"
    with pytest.raises(UserError, match=f"{KNN} is not finite in any run"):
        best([C, infinite], KNN)
    assert dict(zip(COLUMNS, row(C), strict=True))["kNN %"] == "none"
    assert dict(zip(COLUMNS, row(A), strict=True))["kNN %"] == "70.0"


def test_which_way_is_better() -> None:
    assert [lower_is_better(m) for m in ("train/loss", "perf/data_wait", KNN)] == [True, True, False]


def test_trials_stand_below_their_search() -> None:
    search = past("search")
    trials = [past(f"trial{i}", tags={"mlflow.parentRunId": search.run_id}) for i in range(2)]
    deep = past("deep", tags={"mlflow.parentRunId": trials[0].run_id})
    orphan = past("orphan", tags={"mlflow.parentRunId": "0" * 32})
    placed = nested([trials[1], orphan, deep, search, trials[0]])
    assert [(depth, run.name) for depth, run in placed] == [
        (0, "orphan"),
        (0, "search"),
        (1, "trial1"),
        (1, "trial0"),
        (2, "deep"),
    ]
    assert row(deep, 2)[0] == "    deep"


def test_a_run_that_is_its_own_parent_is_listed_once() -> None:
    odd = past("odd")
    odd = past("odd", tags={"mlflow.parentRunId": odd.run_id})
    assert nested([odd]) == [(0, odd)]


def test_params_that_differ() -> None:
    assert differing_params([A, B]) == {"t": ["0.2", "0.1"]}
    assert differing_params([A, A]) == {}
    assert differing_params([A, C])["views.size"] == [None, "64"]


def test_facts_leave_out_what_is_not_known() -> None:
    tags = {"mlflow.source.git.commit": "0123456789abcdef", "git.dirty": "true", "world_size": "4"}
    known = dict(facts(past("x", tags=tags)))
    assert known["commit"] == "0123456789ab (with changes)"
    assert known["workers"] == "4"
    assert known["took"] == "1:00"
    assert "torch" not in known
