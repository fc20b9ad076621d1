"""What Barlow Twins promises beyond MMSelfSup's numbers (tests/conformance) and the contract (tests/contract)."""

import pytest
import torch
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.errors import UserError
from ssl_ray.models import (
    BarlowTwins,
    CrossCorrelationLoss,
    LatentCrossCorrelationHead,
    NonLinearNeck,
    ResNet,
)
from tests.ranks import Ranks


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def barlow_twins(**options) -> BarlowTwins:
    neck = NonLinearNeck(64, 16, 12, num_layers=3, with_last_bn=False)
    return BarlowTwins(ResNet(18, width=8, stem="small"), neck, LatentCrossCorrelationHead(12), **options)


def test_loss_term_by_term():
    matrix = torch.randn(5, 5, dtype=torch.float64)
    expected = sum(
        (matrix[i, j] - 1) ** 2 if i == j else 0.3 * matrix[i, j] ** 2 for i in range(5) for j in range(5)
    )
    torch.testing.assert_close(CrossCorrelationLoss(lambd=0.3)(matrix), expected)
    assert CrossCorrelationLoss()(torch.eye(7)) == 0


def test_correlation_is_pearsons():
    first, second = torch.randn(2, 40, 3, dtype=torch.float64)
    second[:, 0] = 5 - 2 * first[:, 0]
    correlation = LatentCrossCorrelationHead(3).double().correlation(first, second)
    expected = torch.corrcoef(torch.cat([first.T, second.T]))[:3, 3:]
    torch.testing.assert_close(correlation, expected, rtol=1e-4, atol=1e-4)  # eps in the deviation
    assert correlation[0, 0] == pytest.approx(-1, abs=1e-4)


def test_equal_views_correlate_fully():
    z = torch.randn(32, 4, dtype=torch.float64) * torch.tensor([0.01, 1, 10, 100])
    variance = z.var(0, unbiased=False)
    head = LatentCrossCorrelationHead(4, CrossCorrelationLoss(lambd=0.0)).double()
    torch.testing.assert_close(head.correlation(z, z).diagonal(), variance / (variance + 1e-5))
    assert head(z, z) < 0.01


def test_scale_and_shift_of_a_feature_do_not_matter():
    head = LatentCrossCorrelationHead(6).double()
    first, second = torch.randn(2, 16, 6, dtype=torch.float64)
    moved = second * torch.rand(6).add(0.5) + torch.randn(6)
    torch.testing.assert_close(head(first, moved), head(first, second), rtol=1e-3, atol=0)


def test_the_loss_is_symmetric_in_its_views():
    model = barlow_twins().double()
    views = [torch.randn(8, 3, 12, 12, dtype=torch.float64) for _ in range(2)]
    loss, swapped = (model(v, mode="loss").loss for v in (views, views[::-1]))
    torch.testing.assert_close(loss, swapped)


def test_half_precision_embeddings_are_judged_in_float32():
    head = LatentCrossCorrelationHead(6)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head(*torch.randn(2, 16, 6).bfloat16())
    assert loss.dtype == torch.float32


def test_biases_and_norms_have_a_rate_of_their_own():
    model = barlow_twins()
    weights, rest = model.param_groups()
    assert (weights.lr_scale, weights.weight_decay, weights.adapt) == (1.0, 1.0, True)
    assert (rest.lr_scale, rest.weight_decay, rest.adapt) == (0.024, 0.0, False)
    assert all(p.ndim == 1 for p in rest.params)
    assert all(p.ndim > 1 for p in weights.params)
    assert barlow_twins(bias_lr_scale=1.0).param_groups()[1].lr_scale == 1.0


def test_predict_is_the_projection_of_view_0():
    model = barlow_twins().eval()
    images = torch.randn(4, 3, 12, 12)
    expected = model.neck(model.backbone(images))
    torch.testing.assert_close(model([images], mode="predict"), expected)


def test_a_head_of_another_width_than_the_neck_is_refused():
    neck = NonLinearNeck(64, 16, 8, num_layers=3, with_last_bn=False)
    with pytest.raises(UserError, match=r"head.in_channels 12 .* neck.out_channels, 8"):
        BarlowTwins(ResNet(18, width=8), neck, LatentCrossCorrelationHead(12))


def loss_and_gradients() -> dict[str, Tensor]:
    """Of this worker's rows, in the head alone and with nothing converted: what `sync_bn: false` runs."""
    torch.manual_seed(0)
    head = LatentCrossCorrelationHead(6, CrossCorrelationLoss(lambd=0.1)).double()
    rows, layer = (
        torch.randn(16, 5, dtype=torch.float64) + torch.arange(16).view(-1, 1),
        nn.Linear(5, 6).double(),
    )
    local = distributed.local_rows(rows)
    loss = head(layer(local), layer(local.flip(1)))
    loss.backward()
    return {
        "loss": loss.detach(),
        "gradient": distributed.mean(layer.weight.grad),
        "mean": head.bn.running_mean,
        "var": head.bn.running_var,
    }


def test_every_worker_has_the_loss_of_the_global_batch_and_its_gradient(ranks: Ranks):
    alone = loss_and_gradients()
    for seen in ranks(2, loss_and_gradients):
        for key, value in alone.items():
            torch.testing.assert_close(
                seen[key], value, rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}"
            )
