"""Fine-tuning: the loss against torch's formula, mixing pixel by pixel, and layer-wise learning rates against MAE's."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.data.mixing import Mixing
from ssl_ray.data.random import Draws
from ssl_ray.errors import UserError
from ssl_ray.models import (
    CAEViT,
    Classifier,
    ClsHead,
    LabelSmoothLoss,
    MAEViT,
    MoCoV3ViT,
    ResNet,
    SimMIMSwinTransformer,
)
from ssl_ray.models.classifier import mix
from ssl_ray.models.encoder import pooled
from ssl_ray.models.layers import Layers, layers

CLASSES = 7
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
BACKBONES = {
    "mae": lambda: MAEViT(**VIT),
    "moco_v3": lambda: MoCoV3ViT(**VIT, stop_grad_conv1=False),
    "cae": lambda: CAEViT(**VIT),
    "swin": lambda: SimMIMSwinTransformer(
        img_size=16, patch_size=2, embed_dim=8, depths=(2, 3), num_heads=(2, 2), window_size=4
    ),
    "resnet": lambda: ResNet(depth=18, width=4, stem="small"),
}


def classifier(name: str = "resnet", smoothing: float = 0.0, **options: float) -> Classifier:
    torch.manual_seed(0)
    backbone = BACKBONES[name]()
    head = ClsHead(backbone.feature_dim, CLASSES, loss=LabelSmoothLoss(smoothing))
    return Classifier(backbone, head, **options)


def batch(rows: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randint(0, 256, (rows, 3, 16, 16), generator=generator, dtype=torch.uint8),
        torch.randint(0, CLASSES, (rows,), generator=generator),
    )


@pytest.mark.parametrize("name", BACKBONES)
def test_the_loss_is_smoothed_cross_entropy_of_pooled_features(name: str) -> None:
    model = classifier(name, smoothing=0.1)
    images, label = batch()
    output = model([images], {"label": label}, mode="loss")
    with torch.no_grad():
        features = pooled(model.backbone, model.data_preprocessor([images])[0])
        log_p = F.linear(features, model.head.fc_cls.weight, model.head.fc_cls.bias).log_softmax(1)
    target = torch.full((len(label), CLASSES), 0.1 / CLASSES)
    target[torch.arange(len(label)), label] += 0.9
    torch.testing.assert_close(output.loss, -(target * log_p).sum(1).mean())
    torch.testing.assert_close(output.metrics["top1"], (log_p.argmax(1) == label).float().mean())
    output.loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # DDP waits for ever for a gradient that does not come


def test_a_human_label_is_asked_for_here_alone() -> None:
    from ssl_ray.models import BaseModel, algorithms

    assert Classifier.needs_labels
    assert not any(getattr(algorithms, name).needs_labels for name in algorithms.__all__)
    assert not BaseModel.needs_labels
    with pytest.raises(UserError, match="hold no 'label'"):
        classifier()([batch()[0]], {}, mode="loss")


def test_mixing_pixel_by_pixel() -> None:
    """Row 0 mixup, row 1 CutMix, row 2 a box over the edge, row 3 as it is."""
    images = torch.randn(4, 3, 8, 10)
    target = F.one_hot(torch.tensor([0, 1, 2, 3]), 4).float()
    mixing = torch.tensor(
        [[0.7, 0, 0, 0, 0], [1, 0.25, 0.1, 0.75, 0.5], [1, 0.5, 0.8, 1, 1], [1, 0, 0, 0, 0]]
    )
    mixed, labels = mix(images, target, mixing)
    torch.testing.assert_close(mixed[0], 0.7 * images[0] + 0.3 * images[2])
    expected = images[1].clone()
    expected[:, 2:6, 1:5] = images[3, :, 2:6, 1:5]
    torch.testing.assert_close(mixed[1], expected)
    expected = images[2].clone()
    expected[:, 4:, 8:] = images[0, :, 4:, 8:]
    torch.testing.assert_close(mixed[2], expected)
    torch.testing.assert_close(mixed[3], images[3])
    torch.testing.assert_close(
        labels,
        torch.tensor([[0.7, 0, 0.3, 0], [0, 0.8, 0, 0.2], [0.1, 0, 0.9, 0], [0, 0, 0, 1.0]]),
    )


def test_mixed_and_smoothed_is_the_weighted_sum_of_torch_losses() -> None:
    model = classifier(smoothing=0.1).eval()  # batch norm apart: rows are what is compared
    images, label = batch(4)
    mixing = torch.tensor([[0.6, 0, 0, 0, 0]] * 4)
    loss = model([images], {"label": label, "mixing": mixing}, mode="loss").loss
    (x,) = model.data_preprocessor([images])
    partner = torch.tensor([2, 3, 0, 1])
    logits = model.head.logits(model.extract_feat([0.6 * x + 0.4 * x[partner]]))
    ours, theirs = (F.cross_entropy(logits, y, label_smoothing=0.1) for y in (label, label[partner]))
    torch.testing.assert_close(loss, 0.6 * ours + 0.4 * theirs)


@pytest.mark.parametrize("workers", [2, 4])
def test_partners_are_the_same_on_any_number_of_workers(workers: int) -> None:
    images, target = torch.randn(16, 3, 8, 8), torch.rand(16, CLASSES)
    mixing = torch.from_numpy(np.stack([Mixing().draw(Draws(0, 0, i)) for i in range(16)]))
    whole = mix(images, target, mixing)
    for rank in range(workers):
        part = mix(*(x[rank::workers] for x in (images, target, mixing)))
        for mine, all_rows in zip(part, whole, strict=True):
            torch.testing.assert_close(mine, all_rows[rank::workers])


def test_shares_are_beta_and_boxes_have_their_area() -> None:
    drawn = np.stack([Mixing(mixup=0.8, cutmix=1.0, p=0.9).draw(Draws(5, 2, i)) for i in range(4000)])
    share, box = drawn[:, 0], drawn[:, 1:]
    cut = box[:, 2] > box[:, 0]
    mixed = share < 1
    assert np.isclose((cut | mixed).mean(), 0.9, atol=0.02)
    assert np.isclose(cut.mean(), 0.45, atol=0.03)
    assert not (cut & mixed).any()
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)).
    assert np.isclose(share[mixed].mean(), 0.5, atol=0.02)
    assert np.isclose(share[mixed].var(), 1 / (4 * 2.6), atol=0.01)
    inside = box[cut]
    whole = (inside[:, :2] > 0).all(1) & (inside[:, 2:] < 1).all(1)
    sides = inside[whole, 2:] - inside[whole, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1], atol=1e-6)
    assert ((inside >= 0) & (inside <= 1)).all()


def test_mixing_that_is_off() -> None:
    for mixing in (Mixing(0, 0), Mixing(p=0)):
        np.testing.assert_array_equal(mixing.draw(Draws(0, 0, 0)), [1, 0, 0, 0, 0])
    assert not any(Mixing(0.8, 0).draw(Draws(0, 0, i))[1:].any() for i in range(20))
    assert all(Mixing(0, 1).draw(Draws(0, 0, i))[0] == 1 for i in range(20))
    with pytest.raises(UserError, match="neither alpha may be negative"):
        Mixing(mixup=-1)


def scales(model: Classifier) -> dict[str, tuple[float, float]]:
    """Parameter -> (lr_scale, weight_decay); every trainable one is in one group."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], (g.lr_scale, g.weight_decay)) for g in model.param_groups() for p in g.params]
    assert sorted(n for n, _ in found) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    return dict(found)


@pytest.mark.parametrize("name", ["mae", "moco_v3", "cae"])
def test_layer_decay_of_a_vit_is_mae_s(name: str) -> None:
    """As facebookresearch/mae's util/lr_decay.py: layers are 0, block + 1, and depth + 1 for what is left."""
    found = scales(classifier(name, layer_decay=0.65))
    num_layers = VIT["depth"] + 1
    scale_of = [0.65 ** (num_layers - i) for i in range(num_layers + 1)]
    for parameter, (scale, decay) in found.items():
        key = parameter.removeprefix("backbone.")
        if key in ("cls_token", "pos_embed") or key.startswith("patch_embed"):
            layer = 0
        elif key.startswith("blocks"):
            layer = int(key.split(".")[1]) + 1
        else:
            layer = num_layers
        assert scale == pytest.approx(scale_of[layer]), parameter
        one_axis = key.endswith(("bias", "gamma_1", "gamma_2")) or ".norm" in key or key.startswith("norm")
        assert decay == (0.0 if one_axis or key == "cls_token" else 1.0), parameter
    assert found["head.fc_cls.weight"] == (1.0, 1.0)
    assert len({scale for scale, _ in found.values()}) == num_layers + 1


def test_layer_decay_of_a_swin_is_simmim_s() -> None:
    """As microsoft/SimMIM's optimizer.py get_swin_layer, whose num_layers is the number of blocks + 2."""
    depths = (2, 3)
    found = scales(classifier("swin", layer_decay=0.9))
    num_layers = sum(depths) + 2
    for parameter, (scale, decay) in found.items():
        parts = parameter.removeprefix("backbone.").split(".")
        if parts[0] == "patch_embed":
            layer = 0
        elif parts[0] == "layers":
            block = parts[3]
            stage = int(parts[1])
            layer = (
                sum(depths[: stage + 1])
                if block in ("reduction", "norm")
                else sum(depths[:stage]) + int(block) + 1
            )
        else:
            layer = num_layers - 1
        assert scale == pytest.approx(0.9 ** (num_layers - 1 - layer)), parameter
        if "relative_position_bias_table" in parameter:
            assert decay == 0
    assert "backbone.mask_token" not in found


def test_layer_decay_of_a_resnet_goes_by_stages() -> None:
    found = scales(classifier("resnet", layer_decay=0.5, head_lr_scale=10.0))
    assert found["backbone.conv1.weight"] == (0.5**5, 1)
    assert found["backbone.bn1.bias"] == (0.5**5, 0)
    for stage in (1, 2, 3, 4):
        assert found[f"backbone.layer{stage}.1.conv2.weight"] == (0.5 ** (5 - stage), 1)
    assert found["head.fc_cls.weight"] == (10, 1)


def test_without_layer_decay_all_are_alike_whatever_the_backbone() -> None:
    class Own(nn.Module):
        feature_dim = 3

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    make = functools.partial(Classifier, head=ClsHead(3, CLASSES))
    assert {scale for scale, _ in scales(make(Own())).values()} == {1.0}
    with pytest.raises(UserError, match="layers of Own are not known"):
        make(Own(), layer_decay=0.5).param_groups()

    class Knowing(Own):
        def layers(self) -> Layers:
            return Layers(lambda name: int(name.startswith("second")), 2)

    found = scales(make(Knowing(), layer_decay=0.5))
    assert [found[f"backbone.{n}.weight"][0] for n in ("first", "second")] == [0.25, 0.5]
    assert layers(Knowing()).top == 2


def test_wrong_factors() -> None:
    with pytest.raises(UserError, match="layer_decay 0,"):
        classifier(layer_decay=0.0)
    with pytest.raises(UserError, match="head_lr_scale -1"):
        classifier(head_lr_scale=-1.0)
