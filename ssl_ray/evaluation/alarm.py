"""The collapse alarm: what kind of collapse the evaluations of a run show, and since which step.

It keeps no state: it reads the list of all evaluations, which every checkpoint holds. So it says the same after a kill.
Bounds are on what `OnlineEvaluation.run` returns; what a run does not measure raises no alarm.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

COMPLETE = 0.05
"""Bound on `embedding_std` below which a trained projection counts as collapsed to a point.

The ratio is at most sqrt(1 - c), c the mean cosine similarity of two images: 0.05 goes with c = 0.9975. Measured on
Fashion-MNIST: SimSiam's projection goes from 0.15 untrained to 0.9 in 20 steps. Without its stop-gradient it falls
below 0.04 in 250 steps, while the pooled backbone features still show 0.5, because batch norm restores their spread.
So the place to look at is the projection, where there is one; and not before the first epoch: an untrained ResNet-50,
its BN statistics still 0 and 1, shows 0.05 on photographs.
"""
DIMENSIONAL = 0.95
"""Bound on `top_direction` above which projections count as collapsed to a line.

Measured on 256 images of Fashion-MNIST (tests/evaluation/test_collapse.py): Barlow Twins asked for equal features is at
0.98 after 20 steps and 0.99 after 40; SimSiam as it should be at 0.80 and 0.62. Untrained networks show 0.92.
"""
DIMENSIONAL_EMBEDDING = 0.99
"""The same where there is no projector: a healthy encoder may put most of its variance into brightness.

Measured on Fashion-MNIST: MAE's SMALL is at 0.86 untrained and 0.92 after 30 steps (benchmarks/monitors.py).
"""
CLUSTERS = 0.9
"""Bound on the share of the largest cluster.

Measured there too: SwAV without Sinkhorn has all images at one prototype within 15 steps, with it 0.10 to 0.14 at the
largest. On all of Fashion-MNIST SwAV's SMALL begins unevenly: 0.68 after 40 steps, 0.28 after 80.
"""

Evaluation = Mapping[str, float]
NOT_FINITE, IMAGES = "not_finite", "images"
"""In an evaluation that met features which are not finite: of how many images, of how many that it looked at."""


@dataclass(frozen=True)
class Collapse:
    """A collapse that the last evaluation shows.

    kind: "complete", "dimensional", "cluster" or "not finite". since: the step of the first of the evaluations in a row
    that show it. healthy: the step of the last one that did not, None if there was none. reading: what was seen.
    """

    kind: str
    since: int
    healthy: int | None
    reading: str
    advice: str

    def __str__(self) -> str:
        """A line for the user."""
        before = "" if self.healthy is None else f" (not yet at step {self.healthy})"
        name = "features are not finite" if self.kind == "not finite" else f"{self.kind} collapse"
        return f"{name} since step {self.since}{before}: {self.reading}; {self.advice}"


@dataclass(frozen=True)
class _Sign:
    """How a kind of collapse is seen. read: what an evaluation shows of it, None where nothing.

    untrained: whether it counts at step 0, too.
    """

    kind: str
    read: Callable[[Evaluation], str | None]
    advice: str
    untrained: bool = False


def collapses(evaluations: Sequence[Evaluation]) -> list[Collapse]:
    """What the last of a run's evaluations shows; each has its `step`.

    A collapse never counts at step 0: an untrained network's features may lie as close together as a collapsed one's.
    Features that are not finite do.
    """
    found = []
    for sign in _SIGNS:
        since, healthy, reading = None, None, None
        for evaluation in reversed(evaluations):
            step = int(evaluation["step"])
            seen = sign.read(evaluation) if step or sign.untrained else None
            if seen is None:
                healthy = step
                break
            since, reading = step, reading or seen
        if since is not None and reading is not None:
            found.append(Collapse(sign.kind, since, healthy, reading, sign.advice))
    return found


def _not_finite(evaluation: Evaluation) -> str | None:
    if evaluation.get(NOT_FINITE):
        return f"{evaluation[NOT_FINITE]:g} of {evaluation[IMAGES]:g} images have such, and no accuracy"
    bad = [name for name in _watched(evaluation) if not math.isfinite(evaluation[name])]
    return f"{' and '.join(bad)} cannot be computed" if bad else None


def _complete(evaluation: Evaluation) -> str | None:
    name = _at("std", evaluation)
    if name is None or not evaluation[name] < COMPLETE:
        return None
    return f"{name} {evaluation[name]:.2g}, healthy is about 1 (bound {COMPLETE:g}): images are hardly told apart"


def _dimensional(evaluation: Evaluation) -> str | None:
    name = _at("top_direction", evaluation)
    bound = DIMENSIONAL_EMBEDDING if name == "embedding/top_direction" else DIMENSIONAL
    if name is None or not evaluation[name] > bound or _complete(evaluation):
        return None
    share = 100 * evaluation[name]
    return f"{name}: {share:.1f} % of the variance lies along one direction (bound {100 * bound:g} %)"


def _cluster(evaluation: Evaluation) -> str | None:
    largest = evaluation.get("clusters/largest", 0.0)
    if not largest > CLUSTERS:
        return None
    return f"one cluster holds {100 * largest:.1f} % of the images (bound {100 * CLUSTERS:g} %)"


def _watched(evaluation: Evaluation) -> list[str]:
    names = (_at("std", evaluation), _at("rankme", evaluation))
    return [name for name in names if name is not None]


def _at(measure: str, evaluation: Evaluation) -> str | None:
    """Where a measure shows a collapse first: at the projection, where there is one."""
    return next((n for n in (f"projection/{measure}", f"embedding/{measure}") if n in evaluation), None)


_SIGNS = (
    _Sign(
        "not finite",
        _not_finite,
        "lower the lr, or set optimization.clip_grad_norm or training.precision=fp32",
        untrained=True,
    ),
    _Sign(
        "complete",
        _complete,
        "lower the lr, use stronger augmentation, or check predictor, stop-gradient and BN",
    ),
    _Sign(
        "dimensional",
        _dimensional,
        "check what keeps dimensions apart (lambda, batch norm, negatives), lower the lr or the weight decay",
    ),
    _Sign(
        "cluster",
        _cluster,
        "check what balances the clusters (re-weighting, reassignment, Sinkhorn's epsilon), or lower the lr",
    ),
)
