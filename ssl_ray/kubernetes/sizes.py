"""How many pods of which size a run takes: one for the head, some that train, some that only make views."""

import math
from dataclasses import dataclass

from ssl_ray.errors import UserError
from ssl_ray.kubernetes.choices import Choices

# Views are made a little faster than they are consumed: rates vary, and a worker that waits costs more than a core.
HEADROOM = 1.25
CPUS_PER_DATA_POD = 16
# A process that makes views, and its share of the object store.
GIB_PER_DATA_CPU = 2


@dataclass(frozen=True)
class Span:
    """A number of pods: `low` at the least, `high` at most."""

    low: int
    high: int


@dataclass(frozen=True)
class Pods:
    """A group of equal pods: how many, and CPUs, GPUs and memory (GiB) of each."""

    count: Span
    cpus: int
    gpus: int
    memory: int


@dataclass(frozen=True)
class Sizes:
    """The groups of a cluster; `data` is None where the training pods have CPUs enough to make the views, too."""

    train: Pods
    data: Pods | None


HEAD = Pods(Span(1, 1), cpus=4, gpus=0, memory=16)
"""The driver, the scheduler, the dashboard and the dealer of batches, which moves references and no bytes."""


def data_cpus(choices: Choices, workers: int) -> int:
    """CPUs that make views for so many workers: workers x rate of one / rate of a core x 1.25, rounded up."""
    if choices.data_cpus is not None:
        return max(1, math.ceil(choices.data_cpus * workers / choices.workers.most))
    return max(1, math.ceil(workers * choices.images_per_second / choices.images_per_core * HEADROOM))


def sizes(choices: Choices) -> Sizes:
    """The groups for these choices. Raises UserError for GPUs that do not divide among workers."""
    workers_per_pod, gpus = _pod_of_workers(choices)
    count = Span(*(math.ceil(n / workers_per_pod) for n in (choices.workers.least, choices.workers.most)))
    cpus = math.ceil(workers_per_pod * choices.cpus_per_worker)
    memory = workers_per_pod * choices.memory_per_worker
    low, high = (data_cpus(choices, n) for n in (choices.workers.least, choices.workers.most))
    most = choices.data_pods if choices.data_pods is not None else math.ceil(high / CPUS_PER_DATA_POD)
    if most == 0:
        here = math.ceil(high / count.high)
        return Sizes(Pods(count, cpus + here, gpus, memory + here * GIB_PER_DATA_CPU), None)
    each = math.ceil(high / most)
    pods = Span(min(most, math.ceil(low / each)), most)
    return Sizes(Pods(count, cpus, gpus, memory), Pods(pods, each, 0, max(4, each * GIB_PER_DATA_CPU)))


def _pod_of_workers(choices: Choices) -> tuple[int, int]:
    """Workers in a training pod, and its GPUs."""
    each, per_pod = choices.gpus_per_worker, choices.gpus_per_pod
    if not each:
        if per_pod:
            raise UserError(f"gpus-per-pod: {per_pod} with --gpus-per-worker 0; leave one of them out")
        return 1, 0
    per_pod = per_pod or math.ceil(each)
    workers = per_pod / each
    if workers < 1 or workers != int(workers):
        raise UserError(
            f"gpus-per-pod: {per_pod} GPUs do not divide among workers of {each:g}; use a multiple of it"
        )
    return int(workers), per_pod
