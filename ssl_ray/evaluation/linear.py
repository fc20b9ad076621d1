"""Linear classifiers of frozen features: SGD as published, many learning rates in one pass, and logistic regression.

n rows, D feature width, K classes, G classifiers trained side by side on the same batches. Features are those of plain
images: made once, without augmentation. Whatever has to be chosen is chosen on a held-out part of the training rows;
then the chosen classifier is trained on all of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_ray.evaluation.logistic import fit_logistic

HELD_OUT = 0.1  # share of the training rows on which a learning rate or a C is chosen
COSTS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""C of logistic regression on standardised features; a larger one fits the training rows more closely."""


@dataclass(frozen=True)
class SgdSettings:
    """How classifiers are trained by gradient descent.

    lrs: for batches of 256 rows, in proportion to the batch otherwise; all are trained at once. batch_norm: without
    scale and shift, before the classifier. lars: scale steps to the weights' norm. warmup: epochs of rising lr.
    """

    lrs: tuple[float, ...]
    epochs: int
    batch_size: int = 256
    batch_norm: bool = False
    lars: bool = False
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Literal["cosine", "steps"] = "cosine"
    warmup: int = 0


PUBLISHED = {
    # He et al. 2020, arXiv 1911.05722, sec. 4.1: lr 30, no decay, a tenth after 60 % and 80 % of the epochs. Features
    # of another scale than ResNet-50's want another lr.
    "moco": SgdSettings((0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0), epochs=100, schedule="steps"),
    # Chen et al. 2020, arXiv 2002.05709, B.6: Nesterov, lr 0.1 * batch / 256, cosine, no decay, 90 epochs.
    "simclr": SgdSettings((0.01, 0.03, 0.1, 0.3, 1.0, 3.0), epochs=90, nesterov=True),
    # He et al. 2022, arXiv 2111.06377, A.1: batch norm, LARS, base lr 0.1, 90 epochs, 10 of warm-up. Published with
    # batches of 16,384; smaller here where there are fewer rows.
    "mae": SgdSettings((0.03, 0.1, 0.3, 1.0, 3.0, 10.0), 90, 16384, batch_norm=True, lars=True, warmup=10),
}
_SHARED_PRODUCTS = 2**25  # multiplications from which on several threads take part: some milliseconds of one
_LEAST_STEPS = 16  # of an epoch; a batch is no larger than that allows


@dataclass(frozen=True)
class Probe:
    """A trained classifier: scores = ((x - shift) * scale) @ weight + bias, weight (D, K)."""

    shift: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    @torch.no_grad()
    def __call__(self, features: Tensor, rows: int = 65536) -> Tensor:
        """Scores (n, K) on the CPU; computed where the weights are, `rows` rows at a time."""
        parts = torch.split(features, rows)
        scores = [
            ((x.to(self.weight.device) - self.shift) * self.scale) @ self.weight + self.bias for x in parts
        ]
        return torch.cat(scores).cpu()


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits rows: indices to train on, and a share of each class (at least 1 row, where it has 2 or more) held out."""
    generator = torch.Generator().manual_seed(seed)
    held = []
    for label in torch.bincount(labels).nonzero().flatten().tolist():
        rows = torch.nonzero(labels == label).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        count = max(1, round(share * len(rows))) if len(rows) > 1 else 0
        held.append(rows[:count])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(held)] = True
    return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()


def sgd_probe(
    features: Tensor,
    labels: Tensor,
    classes: int,
    settings: SgdSettings,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Probe, dict[float, float]]:
    """The classifier of the best learning rate, and what each reached on the held-out rows, {lr: top-1 in 0..1}.

    Two passes: all learning rates on the rows that are not held out, then the best on all rows.
    """
    kept, held = hold_out(labels, HELD_OUT, seed)
    total = 2 * settings.epochs

    def first(done: int) -> None:
        if on_progress:
            on_progress(done, total)

    def second(done: int) -> None:
        if on_progress:
            on_progress(settings.epochs + done, total)

    probes = train(features[kept], labels[kept], classes, settings, settings.lrs, seed, device, first)
    reached = {
        lr: _top1(probe(features[held]), labels[held]) for lr, probe in zip(settings.lrs, probes, strict=True)
    }
    best = max(reached, key=lambda lr: reached[lr])
    return train(features, labels, classes, settings, [best], seed, device, second)[0], reached


def train(
    features: Tensor,
    labels: Tensor,
    classes: int,
    settings: SgdSettings,
    lrs: Sequence[float],
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int], None] | None = None,
) -> list[Probe]:
    """A classifier for each learning rate, all trained on the same batches from the same weights. Momentum is 0.9."""
    count, width = features.shape
    generator = torch.Generator().manual_seed(seed)
    least = 2 if settings.batch_norm else 1  # a single row has no deviation
    batch = max(least, min(settings.batch_size, count // _LEAST_STEPS))
    steps = max(1, count // batch)
    rates = torch.tensor(lrs, device=device) * batch / 256
    weight = 0.01 * torch.randn(width, classes, generator=generator)
    weight = weight.to(device).expand(len(lrs), -1, -1).clone()  # (G, D, K)
    bias = torch.zeros(len(lrs), 1, classes, device=device)
    momenta = [torch.zeros_like(weight), torch.zeros_like(bias)]
    mean, variance = torch.zeros(width, device=device), torch.ones(width, device=device)
    features, labels = features.to(device), labels.to(device)
    with enough_threads(batch * width * classes * len(lrs)):
        for epoch in range(settings.epochs):
            order = torch.randperm(count, generator=generator).to(device)
            for step in range(steps):
                rows = order[step * batch : (step + 1) * batch]
                x, y = features[rows].float(), labels[rows]
                if settings.batch_norm:
                    x = F.batch_norm(x, mean, variance, training=True, momentum=0.1, eps=1e-6)
                # The gradient of the mean cross entropy, by hand: one product for all classifiers.
                error = (x @ weight + bias).softmax(dim=2)  # (G, B, K)
                error[:, torch.arange(len(y), device=device), y] -= 1
                error /= len(y)
                gradients = [x.T @ error, error.sum(dim=1, keepdim=True)]
                gradients[0] += settings.weight_decay * weight
                if settings.lars:
                    gradients[0] *= _trust(weight, gradients[0])
                rate = (rates * factor(settings, epoch + step / steps)).view(-1, 1, 1)
                for parameter, gradient, momentum in zip((weight, bias), gradients, momenta, strict=True):
                    momentum.mul_(0.9).add_(gradient)
                    parameter -= rate * (gradient + 0.9 * momentum if settings.nesterov else momentum)
            if on_progress:
                on_progress(epoch + 1)
    scale = (variance + 1e-6).rsqrt() if settings.batch_norm else torch.ones_like(variance)
    return [Probe(mean, scale, w, b[0]) for w, b in zip(weight, bias, strict=True)]


def _trust(weight: Tensor, gradient: Tensor) -> Tensor:
    """LARS: each classifier's 0.001 |w| / |g|, or 1 where either is 0."""
    w, g = (x.flatten(1).norm(dim=1) for x in (weight, gradient))
    ratio = torch.where((w > 0) & (g > 0), 0.001 * w / g.clamp(min=1e-30), torch.ones_like(w))
    return ratio.view(-1, 1, 1)


def factor(settings: SgdSettings, epoch: float) -> float:
    """What the learning rate is multiplied by at a (fractional) epoch."""
    if epoch < settings.warmup:
        return epoch / settings.warmup
    if settings.schedule == "steps":
        return 0.1 ** ((epoch >= 0.6 * settings.epochs) + (epoch >= 0.8 * settings.epochs))
    return 0.5 * (1 + math.cos(math.pi * (epoch - settings.warmup) / (settings.epochs - settings.warmup)))


def lbfgs_probe(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    costs: Sequence[float] = COSTS,
    splits: int = 1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Probe, dict[float, float]]:
    """Logistic regression with the best C, and what each C reached on the held-out rows, {C: top-1 in 0..1}.

    From the smallest C up, each begins where the one before ended; the best is then fitted to all rows. splits: how
    often a tenth is held out; where that is few rows, the mean over several is what tells one C from another.
    """
    reached = dict.fromkeys(sorted(costs), 0.0)
    total = splits * len(costs) + 1
    for split in range(splits):
        kept, held = hold_out(labels, HELD_OUT, seed + split)
        start: Probe | None = None
        for i, cost in enumerate(reached):
            given = (features[kept], labels[kept], classes)
            start = logistic(*given, cost, device, start, tolerance=1e-4)  # as good to choose by, and quicker
            reached[cost] += _top1(start(features[held]), labels[held]) / splits
            if on_progress:
                on_progress(split * len(costs) + i + 1, total)
    best = max(reached, key=lambda cost: reached[cost])
    return logistic(features, labels, classes, best, device), reached


def logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    cost: float,
    device: torch.device | str = "cpu",
    start: Probe | None = None,
    steps: int = 1000,
    tolerance: float = 1e-6,
    standard: tuple[Tensor, Tensor] | None = None,
) -> Probe:
    """Minimises C * sum of cross entropies + |w|^2 / 2 by L-BFGS, on standardised features.

    The bias is not penalised; what scikit-learn's LogisticRegression minimises, too. start: where to begin. steps,
    tolerance: of L-BFGS, the latter of the gradient of that sum divided by C n. standard: what `standardise` gave, by
    default of these features.
    """
    x, y = features.to(device).float(), labels.to(device)
    shift, scale = (part.to(device) for part in standard or standardise(x))
    x = (x - shift) * scale
    begin = (start.weight, start.bias) if start else None
    # Divided by C n: gradients of the order of 1, whatever the number of rows.
    penalty = 1 / (cost * len(x))
    with enough_threads(x.shape[0] * x.shape[1] * classes):
        fitted = fit_logistic(x, y, classes, penalty, start=begin, iterations=steps, tolerance=tolerance)
    return Probe(shift, scale, *fitted)


@contextmanager
def enough_threads(products: int) -> Iterator[None]:
    """One thread for the body, if a matrix product of its is too small to be shared out.

    Threads that wait for each other thousands of times a second cost more than they bring, and on a busy machine ten
    times as much.
    """
    before = torch.get_num_threads()
    if products < _SHARED_PRODUCTS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def standardise(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1 / std of each feature; 0 for one that does not vary."""
    std = features.std(dim=0, correction=0)
    return features.mean(dim=0), torch.where(std > 0, 1 / std.clamp(min=1e-30), torch.zeros_like(std))


def _top1(scores: Tensor, labels: Tensor) -> float:
    """0 of a classifier that has diverged: the largest of its scores, which are NaN, would be class 0's."""
    right = (scores.argmax(dim=1) == labels) & ~scores.isnan().any(dim=1)
    return float(right.float().mean()) if len(labels) else 0.0
