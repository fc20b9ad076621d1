import math

import torch
from torch import nn

from ssl_ray.models import ClsHead, CrossEntropyLoss


def test_new_weights_are_small_and_normal():
    torch.manual_seed(0)
    head = ClsHead(500, 40, init_std=0.005)
    first = head.fc_cls.weight.clone()
    assert math.isclose(first.std().item(), 0.005, rel_tol=0.05)
    assert not head.fc_cls.bias.any()
    nn.init.ones_(head.fc_cls.bias)
    head.reset()
    assert not head.fc_cls.bias.any()
    assert not torch.equal(head.fc_cls.weight, first)


def test_it_is_a_linear_layer_on_the_average_of_the_last_map():
    torch.manual_seed(0)
    head, maps = ClsHead(6, 4, with_avg_pool=True), torch.randn(5, 6, 3, 3)
    expected = maps.flatten(2).mean(2) @ head.fc_cls.weight.T + head.fc_cls.bias
    torch.testing.assert_close(head.logits((torch.zeros(5, 2, 6, 6), maps)), expected)
    vectors = ClsHead(6, 4)
    vectors.load_state_dict(head.state_dict())
    torch.testing.assert_close(vectors.logits(maps.mean((2, 3))), expected)


def test_without_a_signal_the_loss_is_the_log_of_the_classes():
    head = ClsHead(6, 10, init_std=0.0)
    loss = head(torch.randn(7, 6), torch.randint(10, (7,)))
    assert math.isclose(loss.item(), math.log(10), rel_tol=1e-6)


def test_class_weights_weigh_rows_and_are_not_divided_out():
    torch.manual_seed(0)
    head, x = ClsHead(6, 3), torch.randn(4, 6)
    target, weights = torch.tensor([0, 2, 2, 1]), torch.tensor([0.5, 2.0, 3.0])
    rows = -head.logits(x).log_softmax(1)[torch.arange(4), target]
    torch.testing.assert_close(head(x, target, weights), (rows * weights[target]).sum() / 4)
    torch.testing.assert_close(head(x, target, torch.ones(3)), head(x, target))
    heavier = ClsHead(6, 3, loss=CrossEntropyLoss(loss_weight=2.0))
    heavier.load_state_dict(head.state_dict())
    torch.testing.assert_close(heavier(x, target), 2 * rows.mean())


def test_prediction_is_the_softmax_and_its_largest_entry():
    torch.manual_seed(0)
    head, x = ClsHead(6, 3), torch.randn(4, 6)
    label, probability = head.predict(x)
    torch.testing.assert_close(probability.sum(1), torch.ones(4))
    torch.testing.assert_close(
        probability.log() - probability.log()[:, :1], (lo := head.logits(x)) - lo[:, :1]
    )
    assert head.accuracy(lo, label) == 1
    assert head.accuracy(lo, (label + 1) % 3) == 0
