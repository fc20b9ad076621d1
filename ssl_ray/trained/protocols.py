"""The protocols that `ssl-ray evaluate` knows by name. A new one is a function here and a line below."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ssl_ray.data.labels import LabelBudget
from ssl_ray.errors import UserError
from ssl_ray.evaluation.knn import knn_votes
from ssl_ray.evaluation.linear import PUBLISHED, lbfgs_probe, logistic, sgd_probe, standardise
from ssl_ray.evaluation.scores import Result, Tally, judge, over_draws
from ssl_ray.evaluation.svm import mean_average_precision, svm_scores
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


def linear(case: Case) -> list[Result]:
    """Linear classifiers of all labels: by SGD as published for this kind of network, and logistic regression."""
    train, val, choices = case.train, case.val, case.choices
    wanted = [choices.probe]
    if choices.probe == "auto":
        wanted = ["moco" if case.subject.convolutional else "mae", "lbfgs"]
    results = []
    for name in wanted:
        with case.console.task(f"linear classifiers ({name})") as on_progress:
            given = (train.features, train.labels, case.classes)
            if name == "lbfgs":
                probe, reached = lbfgs_probe(
                    *given, seed=choices.seed, device=case.device, on_progress=on_progress
                )
            else:
                probe, reached = sgd_probe(
                    *given, PUBLISHED[name], seed=choices.seed, device=case.device, on_progress=on_progress
                )
        best = max(reached, key=lambda value: reached[value])
        case.console.detail(f"{name}: on held-out training images {_list(reached)}")
        setting = f"L-BFGS, C = {best:g}" if name == "lbfgs" else f"SGD as {name}, lr = {best:g}"
        details = {"chosen": best, "reached": {f"{value:g}": top1 for value, top1 in reached.items()}}
        scores = probe(val.features)
        if not scores.isfinite().all():
            raise UserError(
                f"linear: the classifier ({name}) has diverged at every learning rate, on features of up to "
                f"{float(train.features.abs().max()):.2g}; use --probe lbfgs, which scales them"
            )
        results.append(Result("linear", setting, name, judge(scores, val.labels), {}, details))
    return results


def lowshot(case: Case) -> list[Result]:
    """Logistic regression on n labels of each class, and on 1 % and 10 % of them; mean and spread over draws.

    Of n labels C is 1, for they leave nothing to choose it by; of a share of the labels it is chosen on a tenth of that
    share, held out three times where that is little. Features are standardised by all training images: no label is
    needed for that.
    """
    train, val, choices = case.train, case.val, case.choices
    standard = standardise(train.features)

    def few(rows: Tensor) -> dict[str, float]:
        given = (train.features[rows], train.labels[rows], case.classes)
        return judge(logistic(*given, 1.0, case.device, standard=standard)(val.features), val.labels)

    def some(rows: Tensor) -> dict[str, float]:
        given = (train.features[rows], train.labels[rows], case.classes)
        splits = 3 if len(rows) < FEW else 1
        probe, _ = lbfgs_probe(*given, splits=splits, seed=choices.seed, device=case.device)
        return judge(probe(val.features), val.labels)

    draws: list[Draw] = [
        (f"{n} per class", f"n{n}", LabelBudget(shots=n), few) for n in _shots(case, "low-shot")
    ]
    for share in SHARES:
        if share * len(train.labels) >= case.classes:
            percent = f"{100 * share:g}"
            draws.append((f"{percent} % of labels", f"{percent}pct", LabelBudget(share=share), some))
        else:
            case.console.warn(
                f"low-shot without {100 * share:g} % of labels: less than one image of each class"
            )
    return _over_draws(case, "lowshot", draws)


def svm(case: Case) -> list[Result]:
    """Linear SVMs, one class against the rest, on n labels of each class; mean and spread over draws."""
    train, val, choices = case.train, case.val, case.choices

    def few(rows: Tensor) -> dict[str, float]:
        scores, _ = svm_scores(
            train.features[rows], train.labels[rows], val.features, case.classes, seed=choices.seed
        )
        return judge(scores, val.labels) | {"map": mean_average_precision(scores, val.labels)}

    draws: list[Draw] = [(f"{n} per class", f"n{n}", LabelBudget(shots=n), few) for n in _shots(case, "SVM")]
    return _over_draws(case, "svm", draws)


Draw = tuple[str, str, LabelBudget, Callable[[Tensor], dict[str, float]]]
"""Of a row: its setting, its key, the labels it has, indices of their images -> scores."""


def _over_draws(case: Case, protocol: str, draws: Sequence[Draw]) -> list[Result]:
    results: list[Result] = []
    labels = case.train.labels.numpy()
    seeds = [case.choices.seed + i for i in range(case.choices.draws)]
    with case.console.task(protocol) as on_progress:
        for setting, key, budget, scores in draws:
            found = []
            for seed in seeds:
                found.append(scores(torch.from_numpy(budget.choose(labels, seed))))
                on_progress(len(results) * len(seeds) + len(found), len(draws) * len(seeds))
            means, stds = over_draws(found)
            results.append(Result(protocol, setting, key, means, stds, {"seeds": seeds}))
    return results


def _shots(case: Case, what: str) -> list[int]:
    """The numbers of labels that every class has; those that it has not are said to be left out."""
    counts = torch.bincount(case.train.labels)
    fewest = int(counts[counts > 0].min())
    if left_out := [n for n in case.choices.shots if n > fewest]:
        case.console.warn(
            f"{what} without n = {', '.join(map(str, left_out))}: the smallest class has {fewest} images"
        )
    return [n for n in case.choices.shots if n <= fewest]


def _list(reached: dict[float, float]) -> str:
    return ", ".join(f"{value:g}: {100 * top1:.2f} %" for value, top1 in reached.items())


SHARES = (0.01, 0.1)
FEW = 20_000  # labels of which a tenth is too few to choose C by
PROTOCOLS: dict[str, Protocol] = {
    "knn": knn,
    "linear": linear,
    "lowshot": lowshot,
    "svm": svm,
    "finetune": finetune,
}
DEFAULT = ("knn", "linear")
PROBES = ("auto", *PUBLISHED, "lbfgs")
