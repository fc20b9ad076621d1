import math

import pytest
import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models import ClsHead, RelativeLoc, RelativeLocNeck, ResNet
from ssl_ray.models.dropout import dropout_scale


def model(repeat_center: bool = False, dropout: float = 0.0, **settings) -> RelativeLoc:
    torch.manual_seed(0)
    neck = RelativeLocNeck(32, 10, dropout=dropout)
    return RelativeLoc(
        ResNet(18, width=4, stem="small_s2"), neck, ClsHead(10, 8), repeat_center, **settings
    ).double()


def patches(images: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(images, 3, 12, 12, generator=generator, dtype=torch.float64) for _ in range(9)]


def test_neck_is_the_chain_of_its_docstring():
    torch.manual_seed(0)
    neck, maps = RelativeLocNeck(3, 5, bn_momentum=0.25), torch.randn(7, 6, 2, 2)
    assert neck.fc.weight.std() < 0.02
    nn.init.normal_(neck.fc.weight)
    scale = torch.randint(2, (7, 5)) * 2.0
    x = maps.mean((2, 3)) @ neck.fc.weight.T
    var, mean = torch.var_mean(x, 0, correction=0)
    expected = ((x - mean) / (var + 1e-5).sqrt()).relu()
    torch.testing.assert_close(neck((maps,)), expected)
    torch.testing.assert_close(neck.bn.running_mean, 0.25 * mean)
    torch.testing.assert_close(neck((maps,), scale), expected * scale)


def test_loss_pairs_every_neighbour_with_its_own_centre():
    m, views = model(), patches()
    output = m(views, mode="loss")
    around = [m.backbone(torch.stack(views[1:], 1).flatten(0, 1))[-1].mean((2, 3)).view(3, 8, -1)]
    center = m.backbone(views[0])[-1].mean((2, 3))
    pairs = torch.cat([around[0], center[:, None].expand(-1, 8, -1)], dim=2).flatten(0, 1)
    logits = m.head.fc_cls(m.neck.relu(m.neck.bn(m.neck.fc(pairs)))).view(3, 8, 8)
    own = logits.log_softmax(2)[:, range(8), range(8)]
    torch.testing.assert_close(output.loss, -own.mean())
    label, probability = m(views, mode="predict")
    torch.testing.assert_close(probability, logits.softmax(2))
    assert torch.equal(label, logits.argmax(2))
    assert output.metrics["location_top1"] == (label == torch.arange(8)).float().mean()


def test_centres_seen_once_or_eight_times_give_the_same_loss_and_gradients():
    results = []
    for repeat in (False, True):
        m = model(repeat)
        m(patches(), mode="loss").loss.backward()
        results.append(m)
    for (name, p), q in zip(results[0].named_parameters(), results[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=name)
    once, often = (m.backbone.bn1 for m in results)
    torch.testing.assert_close(once.running_mean, often.running_mean)
    assert not torch.allclose(once.running_var, often.running_var, rtol=1e-6, atol=0)


def test_swapping_two_neighbours_swaps_their_predictions():
    m, views = model().eval(), patches()
    swapped = [*views[:3], views[4], views[3], *views[5:]]
    first, second = (m(v, mode="predict").probability for v in (views, swapped))
    torch.testing.assert_close(first[:, [0, 1, 3, 2, 4, 5, 6, 7]], second)


def test_dropout_is_of_training_only_and_can_be_given():
    m, views = model(dropout=0.5), patches()
    zero, one = (torch.full((3, 8, 10), value, dtype=torch.float64) for value in (0, 1))
    nn.init.normal_(m.head.fc_cls.bias)
    expected = -m.head.fc_cls.bias.log_softmax(0).mean()
    torch.testing.assert_close(m(views, {"dropout_scale": zero}, mode="loss").loss, expected)
    plain = model()
    plain.load_state_dict(m.state_dict())
    torch.testing.assert_close(
        m(views, {"dropout_scale": one}, mode="loss").loss, plain(views, mode="loss").loss
    )
    assert m(views, mode="loss").loss != m(views, mode="loss").loss
    plain.load_state_dict(m.state_dict())
    m.eval(), plain.eval()
    torch.testing.assert_close(
        m(views, mode="predict").probability, plain(views, mode="predict").probability, rtol=0, atol=0
    )


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    scale = dropout_scale(200, (10, 10), 0.2, torch.device("cpu"))
    assert scale.unique().tolist() == [0, 1.25]
    assert math.isclose(scale.mean().item(), 1, abs_tol=0.02)


def test_neck_and_head_decay_by_their_own_factor():
    for decay_norms in (True, False):
        m = model(decay_factor=5.0, decay_norms=decay_norms)
        decay = {id(p): group.weight_decay for group in m.param_groups() for p in group.params}
        for name, p in m.named_parameters():
            factor = 1 if name.startswith("backbone.") else 5
            assert decay[id(p)] == (factor if decay_norms or p.ndim > 1 else 0), name


def test_a_number_of_patches_that_the_head_does_not_know_is_refused():
    with pytest.raises(UserError, match=r"2 views for a head of 8 classes.*relative_loc_views"):
        model()(patches()[:2], mode="loss")
