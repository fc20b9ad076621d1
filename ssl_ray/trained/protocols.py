"""The protocols that `ssl-ray evaluate` knows by name. A new one is a function here and a line below."""

from collections.abc import Callable

from ssl_ray.errors import UserError
from ssl_ray.evaluation.knn import knn_votes
from ssl_ray.evaluation.scores import Result, Tally
from ssl_ray.trained.case import Case
from ssl_ray.trained.finetune import finetune

Protocol = Callable[[Case], list[Result]]


def knn(case: Case) -> list[Result]:
    """Weighted kNN for every k and temperature, from one search; each is reported, none is chosen."""
    bank, queries = case.train, case.val
    ks = [k for k in case.choices.ks if k <= len(bank.labels)]
    if not ks:
        raise UserError(
            f"k: {min(case.choices.ks)} neighbours of {len(bank.labels)} images; use a smaller --k"
        )
    if left_out := [k for k in case.choices.ks if k not in ks]:
        case.console.warn(
            f"kNN without k = {', '.join(map(str, left_out))}: the bank has {len(bank.labels)} images"
        )
    tallies = {(k, t): Tally(case.classes) for k in ks for t in case.choices.temperatures}
    start = 0
    device = case.device
    for votes in knn_votes(
        bank.features.to(device),
        bank.labels.to(device),
        queries.features.to(device),
        ks,
        case.choices.temperatures,
        case.classes,
    ):
        for setting, scores in votes.items():
            tallies[setting].add(scores, queries.labels[start : start + len(scores)])
        start += len(scores)
    return [
        Result("knn", f"k = {k}, T = {t:g}", f"k{k}_T{t:g}", tally.scores())
        for (k, t), tally in tallies.items()
    ]


PROTOCOLS: dict[str, Protocol] = {"knn": knn, "finetune": finetune}
DEFAULT = ("knn",)
