import math

import pytest
import torch
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models import ClsHead, ResNet, RotationPred

ARROW_UP = torch.tensor([[0, 9, 0], [5, 5, 5], [0, 5, 0]], dtype=torch.float64)  # 9 is the tip


class Seeing(nn.Module):
    """A backbone that keeps what it was shown."""

    feature_dim = 3

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.seen = x
        return (x,)


def arrows(clockwise: bool) -> Tensor:
    """(4, 3, 3): the arrow as the backbone is shown it, in the order of the classes."""
    model = RotationPred(Seeing(), ClsHead(3, 4, with_avg_pool=True), clockwise).double()
    model([ARROW_UP.expand(2, 3, 3, 3)], mode="loss")
    assert model.backbone.seen.shape == (8, 3, 3, 3)
    torch.testing.assert_close(model.backbone.seen[:4], model.backbone.seen[4:], rtol=0, atol=0)
    return model.backbone.seen[:4, 0]


def tip(image: Tensor) -> tuple[int, int]:
    return divmod(int(image.argmax()), 3)


UP, LEFT, DOWN, RIGHT = (0, 1), (1, 0), (2, 1), (1, 2)


def test_class_k_is_k_quarter_turns():
    assert [tip(image) for image in arrows(clockwise=False)] == [UP, LEFT, DOWN, RIGHT]
    assert [tip(image) for image in arrows(clockwise=True)] == [UP, RIGHT, DOWN, LEFT]


@pytest.mark.parametrize("clockwise", [False, True])
def test_turning_is_exact_and_four_times_it_is_nothing(clockwise):
    torch.manual_seed(0)
    model = RotationPred(Seeing(), ClsHead(3, 4, with_avg_pool=True), clockwise)
    image = turned = torch.randn(1, 3, 5, 5)
    for _ in range(4):
        model([turned], mode="loss")
        turned = model.backbone.seen[1:2]
        assert turned.flatten().sort().values.equal(image.flatten().sort().values)
    torch.testing.assert_close(turned, image, rtol=0, atol=0)


def small() -> RotationPred:
    torch.manual_seed(0)
    backbone = ResNet(18, width=4, stem="small_s2")
    return RotationPred(backbone, ClsHead(32, 4, with_avg_pool=True)).double()


def test_turned_views_are_taken_as_they_are():
    model, image = small(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    views = [image.rot90(k, (2, 3)) for k in range(4)]
    first, second = (model(v, mode="loss") for v in ([image], views))
    torch.testing.assert_close(first.loss, second.loss, rtol=0, atol=0)


def test_loss_is_the_cross_entropy_of_image_and_turn():
    model, image = small(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    output = model([image], mode="loss")
    label, probability = model([image], mode="predict")
    assert probability.shape == (3, 4, 4)
    own = probability[:, range(4), range(4)]
    torch.testing.assert_close(output.loss, -own.log().mean())
    assert output.metrics["rotation_top1"].item() == pytest.approx(
        (label == torch.arange(4)).double().mean().item()
    )


def test_untrained_heads_cost_the_log_of_four():
    model = small()
    nn.init.zeros_(model.head.fc_cls.weight)
    loss = model([torch.randn(2, 3, 16, 16, dtype=torch.float64)], mode="loss").loss
    assert math.isclose(loss.item(), math.log(4), rel_tol=1e-12)


def test_other_numbers_of_views_are_refused():
    with pytest.raises(UserError, match=r"2 views.*rotation_views"):
        small()([torch.randn(1, 3, 16, 16)] * 2, mode="loss")
