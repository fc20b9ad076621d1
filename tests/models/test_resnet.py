import pytest
import torch
import torchvision

from ssl_ray.errors import UserError
from ssl_ray.models import ResNet


@pytest.mark.parametrize("depth", [18, 50])
def test_equals_torchvision_for_the_same_weights(depth):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    ours = ResNet(depth).eval()
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert set(weights) == set(ours.state_dict())
    ours.load_state_dict(weights)
    x = torch.randn(2, 3, 64, 64)
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0].mean((2, 3)), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("stem", "sides"),
    [
        ("imagenet", (16, 8, 4, 2, 1)),
        ("small", (32, 32, 16, 8, 4)),
        ("small_s2", (16, 16, 8, 4, 2)),
        ("small_p2", (34, 34, 17, 9, 5)),
    ],
)
def test_maps_of_each_stem(stem, sides):
    net = ResNet(18, width=4, stem=stem, stem_width=6, out_indices=range(5)).eval()
    shapes = [tuple(m.shape) for m in net(torch.zeros(1, 3, 32, 32))]
    assert shapes == [(1, c, s, s) for c, s in zip((6, 4, 8, 16, 32), sides, strict=True)]
    assert net.feature_dim == 32
    assert ResNet(50, width=4).feature_dim == 128


def test_zero_init_residual_makes_blocks_the_identity():
    block = ResNet(50, width=4, zero_init_residual=True).eval().layer1[1]
    x = torch.rand(2, 16, 5, 5)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [({"depth": 20}, "18, 34, 50"), ({"stem": "cifar"}, "small"), ({"out_indices": (5,)}, "0 .stem. to 4")],
)
def test_what_does_not_exist_is_refused(arguments, allowed):
    with pytest.raises(UserError, match=allowed):
        ResNet(**arguments)
