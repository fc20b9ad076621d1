import math

import pytest

from ssl_ray.evaluation.alarm import CLUSTERS, COMPLETE, DIMENSIONAL, DIMENSIONAL_EMBEDDING, collapses

HEALTHY = {
    "embedding/std": 0.5,
    "embedding/rankme": 30.0,
    "projection/std": 0.9,
    "projection/rankme": 40.0,
    "projection/top_direction": 0.3,
    "clusters/largest": 0.1,
}
SIGNS = {
    "complete": {"projection/std": COMPLETE / 2},
    "dimensional": {"projection/top_direction": (1 + DIMENSIONAL) / 2},
    "cluster": {"clusters/largest": (1 + CLUSTERS) / 2},
    "not finite": {"projection/std": math.nan},
}


def run(*evaluations: dict[str, float]) -> list[dict[str, float]]:
    return [{"step": 10 * i} | HEALTHY | evaluation for i, evaluation in enumerate(evaluations)]


def test_a_healthy_run_raises_none() -> None:
    assert collapses([]) == []
    assert collapses(run({}, {}, {})) == []


@pytest.mark.parametrize("kind", SIGNS)
def test_names_what_it_saw_and_since_when(kind: str) -> None:
    sign = SIGNS[kind]
    (alarm,) = collapses(run({}, {}, sign, sign))
    assert (alarm.kind, alarm.since, alarm.healthy) == (kind, 20, 10)
    line = str(alarm)
    assert "since step 20 (not yet at step 10)" in line
    assert kind in line
    assert next(iter(sign)).split("/")[0] in line or kind == "cluster"
    assert "\n" not in line


@pytest.mark.parametrize("kind", SIGNS)
def test_only_the_row_up_to_now_counts(kind: str) -> None:
    sign = SIGNS[kind]
    assert collapses(run({}, sign, {})) == []
    (alarm,) = collapses(run({}, sign, {}, sign))
    assert (alarm.since, alarm.healthy) == (30, 20)


def test_an_untrained_network_raises_none() -> None:
    assert collapses(run(SIGNS["complete"])) == []
    (alarm,) = collapses(run(SIGNS["complete"], SIGNS["complete"]))
    assert (alarm.since, alarm.healthy) == (10, 0)


def test_two_kinds_at_once() -> None:
    both = SIGNS["complete"] | SIGNS["cluster"]
    assert [a.kind for a in collapses(run({}, both))] == ["complete", "cluster"]


def test_one_point_is_no_dimensional_collapse_as_well() -> None:
    both = SIGNS["complete"] | SIGNS["dimensional"]
    assert [a.kind for a in collapses(run({}, both))] == ["complete"]


def test_the_embedding_tells_where_there_is_no_projection() -> None:
    evaluations = [
        {"step": 0, "embedding/std": 0.5, "embedding/rankme": 9.0},
        {"step": 5, "embedding/std": 0.01, "embedding/rankme": 9.0},
    ]
    (alarm,) = collapses(evaluations)
    assert "embedding/std 0.01" in str(alarm)


def test_an_encoder_without_projector_may_put_more_into_one_direction() -> None:
    def kinds(name: str, share: float) -> list[str]:
        return [alarm.kind for alarm in collapses([{"step": 5, f"{name}/top_direction": share}])]

    between = (DIMENSIONAL + DIMENSIONAL_EMBEDDING) / 2
    assert kinds("projection", between) == ["dimensional"]
    assert kinds("embedding", between) == []
    assert kinds("embedding", (1 + DIMENSIONAL_EMBEDDING) / 2) == ["dimensional"]


def test_what_is_not_measured_raises_none() -> None:
    assert collapses([{"step": 0}, {"step": 5, "val/knn_top1": 0.1}]) == []
