"""What a classifier of held-out images is judged by."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

TOP5_CLASSES = 6  # with fewer, five guesses are all or nearly all there are


class Tally:
    """Counts what was classified right, batch by batch. num_classes: columns of the scores that `add` gets."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._count = torch.zeros(num_classes, dtype=torch.int64)
        self._right = torch.zeros(num_classes, dtype=torch.int64)
        self._right5 = self._total = 0

    def add(self, scores: Tensor, labels: Tensor) -> None:
        """scores: (B, C), the largest wins; with a NaN among them nobody does, and that is wrong.

        labels: (B,) int64; one that is not in 0..C-1 counts as wrong.
        """
        best = scores.topk(min(5, self.num_classes), dim=1).indices
        best = best.masked_fill(scores.isnan().any(1, keepdim=True), -1).cpu()
        labels = labels.cpu()
        hit = (best == labels[:, None]) & (best >= 0)
        self._total += len(labels)
        self._right5 += int(hit.any(1).sum())
        known = (labels >= 0) & (labels < self.num_classes)
        self._count += torch.bincount(labels[known], minlength=self.num_classes)
        self._right += torch.bincount(labels[hit[:, 0]], minlength=self.num_classes)

    def scores(self) -> dict[str, float]:
        """In 0..1: `top1`, `top5` with more than five classes, and `class_mean`, the mean of the classes' top1."""
        found = {"top1": int(self._right.sum()) / self._total}
        if self.num_classes >= TOP5_CLASSES:
            found["top5"] = self._right5 / self._total
        present = self._count > 0
        found["class_mean"] = float((self._right[present] / self._count[present]).mean())
        return found


def judge(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """`Tally.scores` of one batch."""
    tally = Tally(scores.shape[1])
    tally.add(scores, labels)
    return tally.scores()


@dataclass(frozen=True)
class Result:
    """One row of an evaluation.

    protocol, setting: as the table shows them. key: the setting in a metric's name. scores: name -> value in 0..1;
    std: of those that are means over several draws. details: what was chosen on the way, for JSON.
    """

    protocol: str
    setting: str
    key: str
    scores: dict[str, float]
    std: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def metrics(self, prefix: str = "eval/") -> dict[str, float]:
        """Under the names that MLflow shows: `eval/knn_top1_k20_T0.07`, and `..._std` for spreads."""
        end = f"_{self.key}" if self.key else ""
        means = {f"{prefix}{self.protocol}_{name}{end}": value for name, value in self.scores.items()}
        return means | {f"{prefix}{self.protocol}_{name}{end}_std": value for name, value in self.std.items()}


def over_draws(draws: list[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation (n - 1) of each score over several draws; no std of a single one."""
    values = {name: torch.tensor([draw[name] for draw in draws], dtype=torch.float64) for name in draws[0]}
    means = {name: float(v.mean()) for name, v in values.items()}
    return means, {name: float(v.std()) for name, v in values.items()} if len(draws) > 1 else {}
