"""Ranking, table and plots."""

import math

import cv2
import pytest

from ssl_ray.errors import UserError
from ssl_ray.tuning.objective import OBJECTIVES
from ssl_ray.tuning.outcome import Outcome, best_of, ranked, table
from ssl_ray.tuning.plots import _place, learning_curves, parallel_coordinates
from ssl_ray.tuning.space import Choice, LogUniform

SEARCH = {"a.lr": LogUniform(1e-4, 1e-2), "a.kind": Choice(("x", "y"))}


def outcome(name, status="finished", score=None, epoch=3.0, lr=1e-3, kind="x", curve=()):
    return Outcome(name, name, {"a.lr": lr, "a.kind": kind}, status, score, epoch, list(curve))


TRIALS = [
    outcome("low", score=0.2, curve=[(0, 0.1), (3, 0.2)]),
    outcome("failed", "failed", score=0.9),
    outcome("best", score=0.7, kind="y", curve=[(0, 0.1), (3, 0.7)]),
    outcome("stopped", "stopped", score=0.3, epoch=1.0, curve=[(0, 0.1), (1, 0.3)]),
    outcome("untrained", "running", score=0.8, epoch=0.0),
    outcome("new", "waiting", epoch=0.0),
]


def test_the_best_has_trained_and_has_not_failed() -> None:
    best = best_of(TRIALS)
    assert best is not None
    assert best.name == "best"
    assert [o.name for o in ranked(TRIALS)][-1] == "failed"
    assert best_of([TRIALS[1], TRIALS[4], TRIALS[5]]) is None


def test_the_table_has_a_row_for_every_trial_best_first() -> None:
    columns, rows = table(TRIALS, list(SEARCH), "knn_top1")
    assert columns == ["trial", "knn_top1", "epochs", "status", "lr", "kind"]
    assert len(rows) == len(TRIALS)
    assert rows[1] == ["best", "0.7000", "3", "finished", "0.001", "y"]


def test_where_values_are_on_an_axis() -> None:
    assert math.isclose(_place(SEARCH, "a.lr", 1e-3), 0.5)
    assert _place(SEARCH, "a.kind", "y") == 1
    assert _place(SEARCH, "a.kind", "z") is None


def test_plots_show_every_scored_trial(tmp_path) -> None:
    figure = parallel_coordinates(TRIALS, SEARCH, "knn_top1")
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == len(SEARCH) + 1]
    assert len(drawn) == 4
    assert list(drawn[-1].get_ydata())[-1] == max(line.get_ydata()[-1] for line in drawn)
    curves = learning_curves(TRIALS, "knn_top1")
    assert len(curves.axes[0].lines) == 3
    for name, picture in (("a.png", figure), ("b.png", curves)):
        picture.savefig(tmp_path / name)
        assert min(cv2.imread(str(tmp_path / name)).shape[:2]) > 200
    assert parallel_coordinates(TRIALS[5:], SEARCH, "x") is None
    assert learning_curves(TRIALS[5:], "x") is None


def test_a_trial_without_finite_features_ends_with_the_reason() -> None:
    from ssl_ray.tuning.trial import refuse_not_finite

    knn, rankme = OBJECTIVES["knn_top1"], OBJECTIVES["rankme"]
    healthy = {"step": 10, "epoch": 1.0, "val/knn_top1": 0.5, "embedding/rankme": 9.0}
    refuse_not_finite([], knn)
    refuse_not_finite([healthy], knn)
    lost = {"step": 20, "epoch": 2.0, "val/knn_top1": math.nan, "not_finite": 12.0, "images": 24.0}
    with pytest.raises(UserError, match=r"not finite since step 20 \(not yet at step 10\): 12 of 24 images"):
        refuse_not_finite([healthy, lost], knn)
    refuse_not_finite([healthy, lost, healthy | {"step": 30}], knn)
    with pytest.raises(UserError, match="not finite since step 20: embedding/rankme cannot be computed"):
        refuse_not_finite([healthy | {"step": 20, "embedding/rankme": math.inf}], rankme)


class _Trial:
    """What we read of Ray Tune's trial."""

    def __init__(self, status: str, error: str | None = None, **last: object) -> None:
        self.trial_id, self.config, self.status, self.last_result = "ab12_00003", {"a.lr": 0.1}, status, last
        self.error = error

    def get_error(self) -> str | None:
        return self.error


def test_how_a_trial_ended() -> None:
    from ssl_ray.tuning.progress import outcome_of

    curve = {"epoch": 2.0, "curve": [[0, 0.1], [2, 0.5]]}
    said = {
        "waiting": _Trial("PENDING"),
        "running": _Trial("RUNNING", **curve),
        "finished": _Trial("TERMINATED", done=True, ended="finished", **curve),
        "stopped": _Trial("TERMINATED", done=True, ended=None, **curve),
        "interrupted": _Trial("TERMINATED", done=False, **curve),
    }
    for status, trial in said.items():
        assert outcome_of(trial).status == status
    assert outcome_of(said["stopped"]).score == 0.5
    diverged = outcome_of(_Trial("TERMINATED", done=True, ended="failed", cause="the gradient", **curve))
    assert (diverged.status, diverged.cause) == ("failed", "the gradient")
    # NaN, from a search of an earlier version: it neither ranks nor hides behind the score before it.
    lost = outcome_of(_Trial("TERMINATED", done=True, epoch=2.0, curve=[[0, 0.1], [1, 0.9], [2, math.nan]]))
    assert (lost.score, lost.curve) == (None, [(0, 0.1), (1, 0.9)])
    assert best_of([lost, TRIALS[0]]) is TRIALS[0]
    assert ranked([lost, TRIALS[0], TRIALS[3]])[-1] is lost
    crashed = outcome_of(_Trial("ERROR", "Traceback\n  File x\nOSError: disk full\n"))
    assert (crashed.name, crashed.status, crashed.cause) == ("trial-00003", "failed", "OSError: disk full")
