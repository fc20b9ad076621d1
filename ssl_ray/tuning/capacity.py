"""How many trials train at once, and with what, so that none waits for what another holds.

The workers of a trial sit in a placement group of their own, which Ray Tune does not count: more trials at once than
fit would wait for each other for ever. And each trial has a data stream. Ray Data gives each of n streams the CPUs that
training leaves, divided by n and rounded down **on each node**; a stream whose shares are all 0 still runs one task at
a time, and a task takes a whole CPU. So:

- nothing can stall while at least one node keeps one whole CPU free of workers;
- no stream waits for another's CPU while at least n whole CPUs are left in all;
- a stream runs max(1, sum over nodes of floor(left on the node / n)) tasks at a time.

Without being told otherwise a search keeps to the second rule. `--concurrent` may go down to the first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NotRequired, TypedDict, Unpack

from ssl_ray.errors import UserError
from ssl_ray.training import growth
from ssl_ray.training.cluster import (
    MIN_CPUS_PER_WORKER,
    TRAINING_SHARE,
    Resources,
    alive_nodes,
    of_nodes_to_come,
    place,
)

Nodes = list[dict[str, float]]


class Wanted(TypedDict):
    """What `fit_trials` is told of a search."""

    workers: int
    trials: int
    concurrent: NotRequired[int | None]
    cpus_per_worker: NotRequired[float | None]
    gpus_per_trial: NotRequired[float | None]


@dataclass(frozen=True)
class Fit:
    """concurrent: trials at once. resources: of each worker. data_cpus: left for the streams, data_tasks: of each
    stream at a time. limit: what keeps it from being more.
    """

    concurrent: int
    workers: int
    resources: Resources
    data_cpus: float
    data_tasks: int
    limit: str

    @property
    def crowded(self) -> bool:
        """Whether streams have to wait for each other's CPUs."""
        return self.data_cpus < self.concurrent


def parse_cluster(text: str) -> Nodes:
    """Nodes from totals such as "gpus=16,cpus=128,nodes=4", shared out evenly. Raises UserError."""
    values = {"nodes": 1, "cpus": 0, "gpus": 0}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in values or not number.isdigit():
            raise UserError(
                f"cluster: {text!r}; write totals of the cluster, such as gpus=16,cpus=128,nodes=4"
            )
        values[name] = int(number)
    nodes = values["nodes"]
    if not nodes or not values["cpus"] or values["cpus"] % nodes or values["gpus"] % nodes:
        raise UserError(
            f"cluster: {text!r}: cpus (at least 1) and gpus are totals that divide evenly among the nodes"
        )
    return [{"CPU": values["cpus"] / nodes, "GPU": values["gpus"] / nodes}] * nodes


def fit_trials(
    nodes: Nodes,
    *,
    workers: int,
    trials: int,
    concurrent: int | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_trial: float | None = None,
) -> Fit:
    """Shares the cluster out among trials of `workers` workers each.

    By default a worker takes a GPU where there are any and one CPU; less on a machine with few CPUs, more where one
    machine without a GPU trains. Raises UserError for what does not fit.
    """
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    gpu = (1.0 if gpus else 0.0) if gpus_per_trial is None else gpus_per_trial / workers
    has = f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs on {len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    if gpu * workers > gpus:
        raise UserError(
            f"gpus-per-trial: a trial of {workers} workers needs {gpu * workers:g} GPUs, {has}; use fewer --workers or "
            "--gpus-per-trial 0"
        )

    def left(n: int, resources: Resources) -> list[int] | None:
        """Whole CPUs left on each node beside n trials; None if these do not fit."""
        placed, free = place(n * workers, resources, nodes)
        return [int(cpu + 1e-9) for cpu in free] if placed == n * workers else None

    def most(resources: Resources) -> int:
        """Trials that fit with a whole CPU for each one's stream."""
        fitting = (n for n in range(trials, 0, -1) if sum(left(n, resources) or [0]) >= n)
        return next(fitting, 0)

    resources = Resources(1.0 if cpus_per_worker is None else cpus_per_worker, gpu)
    wanted = None if concurrent is None else min(concurrent, trials)
    n = most(resources) if wanted is None else wanted
    if cpus_per_worker is None and (n == 0 or sum(left(n, resources) or [0]) < 1):
        n = max(n, 1)
        share = math.floor(max(cpus - 1, 0) / (n * workers) * 20) / 20
        resources = Resources(min(1.0, share), gpu)
    free = left(n, resources) if n else None
    if (resources.cpus < MIN_CPUS_PER_WORKER and cpus_per_worker is None) or free is None or max(free) < 1:
        fitting = most(resources)
        instead = f"use --concurrent {fitting} or fewer" if 0 < fitting < n else "use fewer --workers"
        raise UserError(
            f"concurrent: {max(n, 1)} trials x {workers} workers of {resources.cpus:g} CPUs and {gpu:g} GPUs, and a "
            f"CPU of one node for their data, do not fit: {has}; {instead}, a smaller --cpus-per-worker, or a larger "
            "cluster (--address)"
        )
    if cpus_per_worker is None and len(nodes) == 1 and not gpu and resources.cpus == 1:
        roomy = min(int((cpus - n) / (n * workers)), int(cpus * TRAINING_SHARE / (n * workers)))
        resources = Resources(float(max(1, roomy)), gpu)
        free = left(n, resources) or free
    if n == trials:
        limit = "all trials"
    elif n == wanted:
        limit = "--concurrent"
    else:
        limit = "GPUs" if gpu and gpu * workers * (n + 1) > gpus else "CPUs"
    return Fit(
        concurrent=n,
        workers=workers,
        resources=resources,
        data_cpus=sum(free),
        data_tasks=max(1, sum(cpu // n for cpu in free)),
        limit=limit,
    )


def fit_growing(say: Callable[[str], None], **wanted: Unpack[Wanted]) -> Fit:
    """As `fit_trials` of the connected cluster. Where there is no room an autoscaler is asked for it, and waited for.

    It is asked for as many trials at once as are wanted, one unless told, each with a CPU for its stream; `say` is told
    that they wait.
    """
    nodes = alive_nodes()
    try:
        return fit_trials(nodes, **wanted)
    except UserError:
        workers, trials = wanted["workers"], min(wanted.get("concurrent") or 1, wanted["trials"])
        gpus = wanted.get("gpus_per_trial")
        each = of_nodes_to_come(
            wanted.get("cpus_per_worker"), None if gpus is None else gpus / workers, nodes
        )
        waiting = f"{trials} trials x {workers} workers of {each.cpus:g} CPUs and {each.gpus:g} GPUs"
        bundles = [each.as_dict()] * (trials * workers) + [{"CPU": 1.0}] * trials
        if not growth.grow(bundles, lambda: say(f"the cluster grows: {waiting} wait for nodes")):
            raise
        return fit_trials(alive_nodes(), **wanted)
