"""Trials at once: counted against a slow model of Ray's own rules."""

import itertools

import pytest

from ssl_ray.errors import UserError
from ssl_ray.tuning.capacity import Fit, fit_trials, parse_cluster


def check(nodes: list[dict[str, float]], fit: Fit) -> None:
    """Places every worker of every trial, node by node, in units of 0.05 CPU, and looks at what is left."""
    cpus = [round(node["CPU"] * 20) for node in sorted(nodes, key=lambda n: -n["CPU"])]
    gpus = [node.get("GPU", 0.0) for node in sorted(nodes, key=lambda n: -n["CPU"])]
    need = round(fit.resources.cpus * 20)
    for _ in range(fit.concurrent * fit.workers):
        for i in range(len(cpus)):
            if cpus[i] >= need and gpus[i] + 1e-9 >= fit.resources.gpus:
                cpus[i] -= need
                gpus[i] -= fit.resources.gpus
                break
        else:
            raise AssertionError("a worker waits for ever")
    assert max(cpus) >= 20, "no data task could ever run"
    assert fit.data_tasks == max(1, sum((c // 20) // fit.concurrent for c in cpus))


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("cluster", ["cpus=2", "cpus=8", "cpus=32,gpus=8,nodes=2", "gpus=16,cpus=48,nodes=4"])
def test_nothing_waits_for_ever(cluster: str, workers: int) -> None:
    nodes = parse_cluster(cluster)
    for trials, concurrent in itertools.product([1, 4, 20], [None, 1, 2]):
        options = {"workers": workers, "trials": trials, "concurrent": concurrent}
        if (
            cluster == "cpus=2" and workers * min(concurrent or 1, trials) > 4
        ):  # of 0.25 CPU each, and 1 for data
            with pytest.raises(UserError, match="do not fit"):
                fit_trials(nodes, **options)
            continue
        fit = fit_trials(nodes, **options)
        check(nodes, fit)
        assert fit.concurrent <= trials
        assert not fit.crowded or concurrent is not None


def test_four_trials_of_two_workers_on_two_cpus_go_one_by_one() -> None:
    fit = fit_trials(parse_cluster("cpus=2"), workers=2, trials=4)
    assert (fit.concurrent, fit.resources.cpus, fit.data_cpus) == (1, 0.5, 1)


def test_what_is_left_is_rounded_down_on_each_node() -> None:
    fit = fit_trials(parse_cluster("gpus=16,cpus=128,nodes=4"), workers=1, trials=20)
    assert (fit.concurrent, fit.limit, fit.data_cpus) == (16, "GPUs", 112)
    assert fit.data_tasks == 4, "28 CPUs are left on each of 4 nodes; 16 streams count on 1 of each"


def test_parts_of_a_gpu() -> None:
    fit = fit_trials(parse_cluster("gpus=1,cpus=8"), workers=1, trials=9, gpus_per_trial=0.25)
    assert fit.concurrent == 4
    assert fit.resources.gpus == 0.25


@pytest.mark.parametrize(
    ("cluster", "options", "said"),
    [
        ("cpus=8,gpus=2", {"gpus_per_trial": 4.0}, "needs 4 GPUs"),
        ("cpus=2", {"workers": 2, "concurrent": 4}, "use --concurrent"),
        ("cpus=1", {}, "do not fit"),
        ("cpus=4", {"cpus_per_worker": 4.0}, "do not fit"),
        ("cpu=4", {}, "write totals"),
        ("cpus=5,nodes=2", {}, "divide evenly"),
    ],
)
def test_what_cannot_be_served_is_refused(cluster: str, options: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        fit_trials(parse_cluster(cluster), **{"workers": 1, "trials": 4} | options)
