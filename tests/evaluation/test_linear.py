import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ssl_ray.evaluation.linear import (
    COSTS,
    PUBLISHED,
    SgdSettings,
    factor,
    hold_out,
    lbfgs_probe,
    logistic,
    sgd_probe,
    standardise,
    train,
)
from ssl_ray.evaluation.scores import judge
from ssl_ray.training.lars import LARS

CLASSES = 6


def blobs(seed: int, n: int, dim: int = 16) -> tuple[Tensor, Tensor]:
    """Overlapping classes whose features differ in scale and offset."""
    centres = torch.randn(CLASSES, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    noise = 1.5 * torch.randn(n, dim, generator=generator)
    return (centres[labels] + noise) * torch.logspace(-1, 1, dim) + 3, labels


@pytest.mark.parametrize("cost", [1e-3, 1.0])
def test_logistic_equals_scikit_learn(cost: float) -> None:
    (x, y), (queries, _) = blobs(0, 600), blobs(1, 200)
    scaler = StandardScaler().fit(x.double().numpy())
    reference = LogisticRegression(C=cost, tol=1e-10, max_iter=5000).fit(scaler.transform(x.double()), y)
    expected = reference.predict_proba(scaler.transform(queries.double().numpy()))
    found = logistic(x, y, CLASSES, cost)(queries).softmax(dim=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def test_where_it_begins_does_not_matter() -> None:
    x, y = blobs(0, 400)
    cold = logistic(x, y, CLASSES, 0.1)
    warm = logistic(x, y, CLASSES, 0.1, start=logistic(x, y, CLASSES, 1e-3))
    torch.testing.assert_close(warm.weight, cold.weight, atol=2e-3, rtol=0)


def test_constant_features_do_no_harm() -> None:
    x, y = blobs(0, 300)
    with_constant = torch.cat([x, torch.full((300, 1), 5.0)], dim=1)
    probe = logistic(with_constant, y, CLASSES, 1.0)
    assert probe.scale[-1] == 0
    found, expected = probe(with_constant), logistic(x, y, CLASSES, 1.0)(x)
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), atol=1e-3, rtol=0)


def test_given_statistics_are_used() -> None:
    (x, y), (more, _) = blobs(0, 60), blobs(1, 500)
    standard = standardise(more)
    probe = logistic(x, y, CLASSES, 1.0, standard=standard)
    torch.testing.assert_close(probe.shift, more.mean(dim=0))
    scaled = (x - standard[0]) * standard[1]
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(scaled.double(), y)
    np.testing.assert_allclose(
        probe(x).softmax(dim=1).numpy(), reference.predict_proba(scaled.double()), atol=1e-3
    )


def test_the_cost_is_chosen_on_held_out_training_rows() -> None:
    x, y = blobs(0, 120, dim=64)  # so few rows that a large C overfits
    probe, reached = lbfgs_probe(x, y, CLASSES, seed=3)
    kept, held = hold_out(y, 0.1, 3)
    assert tuple(reached) == COSTS
    scaler = StandardScaler().fit(x[kept].double().numpy())
    for cost in (1e-3, 1.0):
        reference = LogisticRegression(C=cost, tol=1e-8, max_iter=5000).fit(
            scaler.transform(x[kept].double()), y[kept]
        )
        assert reached[cost] == pytest.approx(reference.score(scaler.transform(x[held].double()), y[held]))
    best = max(reached, key=lambda cost: reached[cost])
    torch.testing.assert_close(probe.weight, logistic(x, y, CLASSES, best).weight)


def test_several_splits_are_averaged() -> None:
    x, y = blobs(0, 300)
    _, reached = lbfgs_probe(x, y, CLASSES, costs=(0.01, 1.0), splits=3, seed=3)
    single = [lbfgs_probe(x, y, CLASSES, costs=(0.01, 1.0), seed=3 + i)[1] for i in range(3)]
    for cost in (0.01, 1.0):
        assert reached[cost] == pytest.approx(sum(s[cost] for s in single) / 3)
    assert len({tuple(s.values()) for s in single}) > 1


def test_hold_out_is_balanced_disjoint_and_repeatable() -> None:
    labels = torch.tensor([0] * 100 + [1] * 20 + [2] * 2 + [3])
    kept, held = hold_out(labels, 0.1, 0)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(len(labels)))
    assert torch.bincount(labels[held]).tolist() == [10, 2, 1]  # a class of one row is all trained on
    assert torch.equal(hold_out(labels, 0.1, 0)[1], held)
    assert not torch.equal(hold_out(labels, 0.1, 1)[1], held)


@pytest.mark.parametrize("name", PUBLISHED)
def test_side_by_side_is_as_alone(name: str) -> None:
    x, y = blobs(0, 256)
    settings = PUBLISHED[name]
    settings = SgdSettings(**{**vars(settings), "epochs": 3, "warmup": min(1, settings.warmup)})
    together = train(x, y, CLASSES, settings, settings.lrs, seed=1)
    for lr, probe in zip(settings.lrs, together, strict=True):
        (alone,) = train(x, y, CLASSES, settings, [lr], seed=1)
        torch.testing.assert_close(probe(x), alone(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_steps_are_those_of_torch(name: str) -> None:
    """The same batches, trained by autograd and torch's SGD, or the package's LARS."""
    x, y = blobs(0, 192)
    epochs = 4
    settings = PUBLISHED[name]
    settings = SgdSettings(
        **{**vars(settings), "epochs": epochs, "warmup": min(1, settings.warmup), "weight_decay": 0.01}
    )
    lr = 0.1
    (probe,) = train(x, y, CLASSES, settings, [lr], seed=5)

    generator = torch.Generator().manual_seed(5)
    batch = 192 // 16
    linear = torch.nn.Linear(16, CLASSES)
    with torch.no_grad():
        linear.weight.copy_((0.01 * torch.randn(16, CLASSES, generator=generator)).T)
        linear.bias.zero_()
    norm = torch.nn.BatchNorm1d(16, affine=False, eps=1e-6) if settings.batch_norm else torch.nn.Identity()
    groups = [{"params": [linear.weight], "weight_decay": 0.01}, {"params": [linear.bias], "adapt": False}]
    optimizer: torch.optim.Optimizer
    if settings.lars:
        optimizer = LARS(groups, lr=1.0, momentum=0.9)
    else:
        groups[1].pop("adapt")
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=settings.nesterov)
    for epoch in range(epochs):
        order = torch.randperm(192, generator=generator)
        for step in range(16):
            rows = order[step * batch : (step + 1) * batch]
            for group in optimizer.param_groups:
                group["lr"] = lr * batch / 256 * factor(settings, epoch + step / 16)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(linear(norm(x[rows])), y[rows]).backward()
            optimizer.step()
    norm.eval()
    with torch.no_grad():
        torch.testing.assert_close(probe(x), linear(norm(x)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_few_rows_are_enough(name: str) -> None:
    """As with a label or two of each class: batch norm needs no more than another row."""
    x, y = blobs(0, 9)
    settings = SgdSettings(**{**vars(PUBLISHED[name]), "epochs": 3, "warmup": 1})
    for probe in train(x, y, CLASSES, settings, settings.lrs):
        assert torch.isfinite(probe(x)).all()


def test_published_schedules() -> None:
    moco, simclr, mae = PUBLISHED["moco"], PUBLISHED["simclr"], PUBLISHED["mae"]
    assert [factor(moco, e) for e in (0, 59.9, 60, 79.9, 80, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert [factor(simclr, e) for e in (0, 45, 90)] == pytest.approx([1, 0.5, 0])
    assert [factor(mae, e) for e in (0, 5, 10, 50, 90)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert 30.0 in moco.lrs


@pytest.mark.parametrize("name", ["simclr", "mae"])
def test_sgd_reaches_what_logistic_regression_does(name: str) -> None:
    (x, y), (queries, labels) = blobs(0, 1500), blobs(1, 600)
    shift, scale = standardise(x)
    x, queries = (x - shift) * scale, (queries - shift) * scale
    probe, reached = sgd_probe(x, y, CLASSES, SgdSettings(**{**vars(PUBLISHED[name]), "epochs": 30}))
    assert set(reached) == set(PUBLISHED[name].lrs)
    best = judge(lbfgs_probe(x, y, CLASSES)[0](queries), labels)["top1"]
    assert best > 0.5
    assert judge(probe(queries), labels)["top1"] > best - 0.04
