"""What a search would do with a cluster, said before it starts."""

from typing import Any

from ssl_ray.console import Console
from ssl_ray.tuning.capacity import Fit, Nodes
from ssl_ray.tuning.objective import Objective
from ssl_ray.tuning.plan import SCHEDULERS, SearchPlan
from ssl_ray.tuning.space import format_space


def forecast(plan: SearchPlan, fit: Fit, nodes: Nodes, objective: Objective) -> dict[str, Any]:
    """All that is known before the first trial, as JSON can hold it.

    most_trial_epochs: if nothing is stopped; expected_trial_epochs: if at each rung just one in `reduction` goes on.
    """
    return {
        "trials": plan.trials,
        "concurrent": fit.concurrent,
        "limit": fit.limit,
        "workers_per_trial": fit.workers,
        "cpus_per_worker": fit.resources.cpus,
        "gpus_per_worker": fit.resources.gpus,
        "cpus_per_trial": fit.resources.cpus * fit.workers,
        "gpus_per_trial": fit.resources.gpus * fit.workers,
        "nodes": len(nodes),
        "cpus": sum(node.get("CPU", 0.0) for node in nodes),
        "gpus": sum(node.get("GPU", 0.0) for node in nodes),
        "cpus_for_data": fit.data_cpus,
        "data_tasks_per_trial": fit.data_tasks,
        "crowded": fit.crowded,
        "scheduler": plan.scheduler,
        "objective": objective.name,
        "max_epochs": plan.max_epochs,
        "rungs": plan.rungs,
        "exchange_every": plan.interval if plan.scheduler == "pbt" else None,
        "mutated": list(plan.mutated),
        "most_trial_epochs": plan.most_epochs,
        "expected_trial_epochs": plan.expected_epochs,
        "space": {path: format_space(space) for path, space in plan.search.items()},
    }


def show_forecast(said: dict[str, Any], plan: SearchPlan, console: Console) -> None:
    """A forecast for people: two tables."""
    several = "workers" if said["workers_per_trial"] > 1 else "worker"
    waiting = "; trials wait for each other's" if said["crowded"] else ""
    rows = [
        ("cluster", f"{said['nodes']} nodes, {said['cpus']:g} CPUs, {said['gpus']:g} GPUs"),
        ("trials", f"{plan.trials}, {said['concurrent']} at a time (limited by {said['limit']})"),
        (
            "a trial",
            f"{said['workers_per_trial']} {several}: {said['cpus_per_trial']:g} CPUs, {said['gpus_per_trial']:g} GPUs",
        ),
        (
            "data",
            f"{said['cpus_for_data']:g} CPUs left for it; {said['data_tasks_per_trial']} tasks at a time for each trial"
            + waiting,
        ),
        ("scheduler", f"{plan.scheduler}: {SCHEDULERS[plan.scheduler]}"),
        ("objective", said["objective"]),
        ("epochs", f"{plan.max_epochs} for a trial that is not stopped"),
    ]
    if plan.rungs:
        rows.append(("rungs", "after epoch " + ", ".join(map(str, plan.rungs))))
        rows.append(("trial-epochs", f"about {plan.expected_epochs}, at most {plan.most_epochs}"))
    else:
        rows.append(("trial-epochs", f"at most {plan.most_epochs}"))
    if plan.scheduler == "pbt":
        rows.append(("exchange", f"every {plan.interval} epochs"))
    console.table("The search", ["what", "how"], rows)
    columns, lines = ["path", "values"], [[path, space] for path, space in said["space"].items()]
    if plan.mutated:
        columns.append("while it trains")
        for line in lines:
            line.append("changes" if line[0] in plan.mutated else "stays with the weights")
    console.table("The space", columns, lines)
