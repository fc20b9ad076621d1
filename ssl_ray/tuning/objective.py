"""What a search maximises: a number of the online evaluation."""

from dataclasses import dataclass

from ssl_ray.data.source import Dataset
from ssl_ray.errors import UserError, nearest

# What a trial's results call the score and the epoch that it belongs to.
METRIC, TIME = "objective", "epoch"


@dataclass(frozen=True)
class Objective:
    """name: what the user types; key: the online evaluation's. More is better."""

    name: str
    key: str
    needs_labels: bool

    def show(self, value: float) -> str:
        """The value for people: an accuracy in per cent."""
        return f"{100 * value:.1f} %" if self.needs_labels else f"{value:.2f}"


OBJECTIVES = {
    o.name: o
    for o in (
        Objective("knn_top1", "val/knn_top1", needs_labels=True),
        Objective("rankme", "embedding/rankme", needs_labels=False),
        Objective("embedding_std", "embedding/std", needs_labels=False),
    )
}


def choose_objective(name: str | None, dataset: Dataset) -> Objective:
    """The objective of that name; without a name `knn_top1` where there are labels, else `rankme`.

    Why RankMe (Garrido et al., 2023, arXiv 2210.02885): without labels a loss cannot be compared between trials, for
    the temperature, the views and the masks that are searched change what a loss of 1 means, and a collapsed network's
    can be the lowest of all. The features' effective rank can: it is measured on the same plain images at the same
    width, a collapse shows as a small one, and among working runs it ranks as linear probes do. It does not see
    features that are many and useless, so it is no substitute for labels, and it says nothing across backbones of
    different width. `embedding_std` only notices collapse.

    Raises UserError for an unknown name, or one that needs labels where there are none.
    """
    labelled = (
        dataset.val is not None and dataset.train.labels() is not None and dataset.val.labels() is not None
    )
    if name is None:
        return OBJECTIVES["knn_top1" if labelled else "rankme"]
    if name not in OBJECTIVES:
        raise UserError(
            f"objective: {name!r}; {nearest(name, OBJECTIVES)}; there are {', '.join(OBJECTIVES)}"
        )
    if OBJECTIVES[name].needs_labels and not labelled:
        free = [o.name for o in OBJECTIVES.values() if not o.needs_labels]
        raise UserError(
            f"objective: {name} needs labels, and {dataset.train.info.name} has none held out; use {' or '.join(free)}"
        )
    return OBJECTIVES[name]
