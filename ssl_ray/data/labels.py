"""Few labels: which images of a labelled source keep theirs. Balanced over classes, and fixed by a seed."""

import re
from dataclasses import dataclass, replace

import numpy as np

from ssl_ray.data.plan import Int64, label_permutation
from ssl_ray.data.sources.base import Source, digest
from ssl_ray.errors import UserError

_KINDS = "write 1%, 10%, 100% or another share of the labels, or 4-shot for 4 images of each class"


@dataclass(frozen=True)
class LabelBudget:
    """How many labels there are: a share of all, or a number per class. Exactly one of the two is not None.

    share: in (0, 1]. shots: at least 1.
    """

    share: float | None = None
    shots: int | None = None

    @classmethod
    def parse(cls, text: str) -> "LabelBudget":
        """Reads "10%" or "4-shot". Raises UserError for anything else."""
        if (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())) and 0 < float(found[1]) <= 100:
            return cls(share=float(found[1]) / 100)
        if (found := re.fullmatch(r"(\d+)-?shot", text.strip())) and int(found[1]) > 0:
            return cls(shots=int(found[1]))
        raise UserError(f"labels: {text!r} is no number of labels; {_KINDS}")

    def __str__(self) -> str:
        return f"{100 * self.share:g}%" if self.share is not None else f"{self.shots}-shot"

    @property
    def slug(self) -> str:
        """As `str`, for names of runs and files."""
        return str(self).replace("%", "pct")

    def choose(self, labels: Int64, seed: int, class_names: tuple[str, ...] | None = None) -> Int64:
        """Which images keep their label: positions (n,) in `labels` (N,), ascending.

        A share of s means round(s N) images, at least one of each class: equally many of each class as far as the
        classes are large enough, and what small ones lack from the others. With one seed, a smaller budget's images are
        among a larger one's. Labels below 0 stand for no label. Raises UserError if a class has fewer than `shots`
        images, or there is no label at all.
        """
        order = label_permutation(len(labels), seed)(np.arange(len(labels)))
        order = order[labels[order] >= 0]
        classes, counts = np.unique(labels[order], return_counts=True)
        if not len(classes):
            raise UserError("labels: the data has none; give labelled images, such as a folder per class")
        if self.shots is not None:
            if counts.min() < self.shots:
                rare = int(classes[counts.argmin()])
                name = class_names[rare] if class_names else rare
                raise UserError(
                    f"labels: {self} needs {self.shots} images of each class, but class {name} has {counts.min()}; "
                    f"choose at most {counts.min()}-shot, or a share such as 10%"
                )
            quota = np.full_like(counts, self.shots)
        else:
            assert self.share is not None
            quota = _level(counts, max(len(classes), round(self.share * counts.sum())))
        chosen = [order[labels[order] == c][:n] for c, n in zip(classes, quota, strict=True)]
        return np.sort(np.concatenate(chosen))


def _level(counts: Int64, total: int) -> Int64:
    """How many of each class: `total` altogether, none more than `counts`, and otherwise as equal as can be."""
    level = int(np.searchsorted([np.minimum(counts, n).sum() for n in range(int(counts.max()) + 1)], total))
    quota = np.minimum(counts, level)
    # The last round goes round for some classes only; the first ones go without, one image each.
    surplus = int(quota.sum()) - total
    quota[np.flatnonzero(quota == level)[:surplus]] -= 1
    return quota


class LabelledPart:
    """The images of a source that keep their label. Image i is the i-th of them in the source's own order."""

    def __init__(self, source: Source, budget: LabelBudget, seed: int) -> None:
        labels = source.labels()
        if labels is None:
            raise UserError(
                f"labels: {source.info.name} has none; fine-tuning needs labelled images, such as a folder per class"
            )
        self.source = source
        self.positions = budget.choose(labels, seed, source.info.class_names)
        self._labels = labels[self.positions]
        part = digest(source.info.digest, self.positions.tobytes())
        self.info = replace(source.info, num_samples=len(self.positions), digest=part)

    def read(self, indices: Int64) -> list[bytes]:
        """As Source.read."""
        return self.source.read(self.positions[np.asarray(indices, np.int64)])

    def labels(self) -> Int64 | None:
        """As Source.labels."""
        return self._labels

    def path(self, index: int) -> str:
        """As Source.path."""
        return self.source.path(int(self.positions[index]))
