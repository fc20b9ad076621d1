import math

import torch
from torch import nn

from ssl_ray.models import ContrastiveHead, CrossEntropyLoss, LinearNeck, NonLinearNeck


def test_nonlinear_neck_is_the_mlp_of_its_docstring():
    torch.manual_seed(0)
    neck = NonLinearNeck(6, 5, 4, num_layers=3, with_bias=True, with_last_bn_affine=False)
    kinds = [
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Linear,
        nn.BatchNorm1d,
    ]
    assert [type(m) for m in neck] == kinds
    assert (neck.fc0.bias is not None, neck.fc2.bias is None, neck.bn2.weight is None) == (True, True, True)
    maps = torch.randn(8, 6, 3, 3)
    out = neck((maps,))
    x = maps.mean((2, 3))
    for fc, last in ((neck.fc0, False), (neck.fc1, False), (neck.fc2, True)):
        x = fc(x)
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        x = x if last else x.relu()
    torch.testing.assert_close(out, x, rtol=1e-4, atol=1e-5)


def test_moco_v2_neck_has_no_batch_norm():
    neck = NonLinearNeck(6, 5, 4, with_bias=True, with_last_bias=True, with_bn=False, with_last_bn=False)
    assert [type(m) for m in neck] == [nn.Linear, nn.ReLU, nn.Linear]
    assert neck.fc1.bias is not None


def test_linear_neck_pools_maps_and_takes_vectors():
    neck = LinearNeck(6, 4)
    maps = torch.randn(2, 6, 3, 3)
    vectors = LinearNeck(6, 4, with_avg_pool=False)
    vectors.load_state_dict(neck.state_dict())
    torch.testing.assert_close(neck((maps,)), vectors((maps.mean((2, 3)),)))


def test_contrastive_head_is_cross_entropy_of_the_first_column():
    torch.manual_seed(0)
    pos, neg = torch.randn(4, 1), torch.randn(4, 7)
    logits = torch.cat([pos, neg], 1) / 0.2
    expected = -(logits[:, 0] - logits.exp().sum(1).log()).mean()
    torch.testing.assert_close(ContrastiveHead(0.2)(pos, neg), expected)
    heavier = ContrastiveHead(0.2, CrossEntropyLoss(loss_weight=3.0))
    torch.testing.assert_close(heavier(pos, neg), 3 * expected)


def test_equal_similarities_cost_the_log_of_the_candidates():
    loss = ContrastiveHead(0.07)(torch.full((5, 1), 0.3), torch.full((5, 65536), 0.3))
    assert math.isclose(loss.item(), math.log(65537), rel_tol=1e-5)


def test_excluded_negatives_do_not_count():
    head, pos, neg = ContrastiveHead(), torch.randn(4, 1), torch.randn(4, 7)
    padded = torch.cat([neg, torch.full((4, 2), -torch.inf)], 1).requires_grad_()
    torch.testing.assert_close(head(pos, padded), head(pos, neg))
    head(pos, padded).backward()
    assert padded.grad.isfinite().all()


def test_half_precision_similarities_are_judged_in_float32():
    pos, neg = torch.randn(4, 1).bfloat16(), torch.randn(4, 7).bfloat16()
    head = ContrastiveHead(0.07)
    loss = head.loss(torch.cat([pos, neg], 1), torch.zeros(4, dtype=torch.long))
    assert loss.dtype == torch.float32


def test_accuracy_is_zero_where_all_are_equal():
    head = ContrastiveHead()
    assert head.accuracy(torch.ones(3, 1), torch.ones(3, 4)) == 0
    assert head.accuracy(torch.tensor([[1.0], [0.0]]), torch.full((2, 3), 0.5)) == 0.5
