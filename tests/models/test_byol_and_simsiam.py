"""What BYOL and SimSiam promise beyond MMSelfSup's numbers (tests/conformance) and the contract (tests/contract)."""

import copy
import math

import pytest
import torch
from torch.optim import SGD

from ssl_ray.models import (
    BYOL,
    CosineSimilarityLoss,
    LatentPredictHead,
    NonLinearNeck,
    Progress,
    ResNet,
    SimSiam,
)
from ssl_ray.spec import Spec
from ssl_ray.training.optim import build_optimizer, set_lr


def parts(shift: float = 0.0):
    predictor = NonLinearNeck(8, 6, 8, with_bias=True, with_last_bn=False, with_avg_pool=False)
    head = LatentPredictHead(predictor, CosineSimilarityLoss(shift))
    return ResNet(18, width=4, stem="small"), NonLinearNeck(32, 16, 8, with_bias=True), head


def byol(**options) -> BYOL:
    return BYOL(*parts(shift=1.0), **options)


def simsiam(**options) -> SimSiam:
    return SimSiam(*parts(), **options)


both = pytest.mark.parametrize("build", [byol, simsiam])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def views() -> list[torch.Tensor]:
    return [torch.randint(0, 256, (8, 3, 12, 12), dtype=torch.uint8) for _ in range(2)]


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


# The loss and its head


def test_the_loss_counts_directions_only():
    x = torch.randn(6, 5)
    loss = CosineSimilarityLoss()
    assert loss(x, 3 * x).item() == pytest.approx(-1)
    assert loss(x, -0.1 * x).item() == pytest.approx(1)
    assert CosineSimilarityLoss(shift_factor=1.0)(x, x).item() == pytest.approx(0, abs=1e-6)
    y = torch.randn(6, 5)
    expected = (2 - 0.5 * cosine(x, y)).mean()
    torch.testing.assert_close(CosineSimilarityLoss(shift_factor=2.0, scale_factor=0.5)(x, y), expected)


def test_the_loss_of_masked_tokens_is_their_mean():
    pred, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]])
    loss = CosineSimilarityLoss()
    chosen = loss(pred[mask.bool()], target[mask.bool()])
    torch.testing.assert_close(loss(pred, target, mask), chosen)


def test_half_precision_is_judged_in_float32():
    x = torch.randn(4, 5).bfloat16()
    assert CosineSimilarityLoss()(x, x).dtype == torch.float32


def test_no_gradient_reaches_the_target():
    head = parts()[2]
    projection, target = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    head(projection, target).backward()
    assert projection.grad.abs().sum() > 0
    assert target.grad is None


# Both algorithms


@both
def test_the_views_can_change_places(build, views):
    model = build().double()
    views = [view.double() / 255 for view in views]
    loss = model(views, mode="loss").loss
    torch.testing.assert_close(model(views[::-1], mode="loss").loss, loss)


@both
def test_each_view_has_batch_statistics_of_its_own(build, views):
    model = build()
    model(views, mode="loss")
    assert model.backbone.bn1.num_batches_tracked == 2
    assert model.head.predictor.bn0.num_batches_tracked == 2


@both
def test_the_prediction_is_the_projection_of_the_first_view(build, views):
    model = build().eval()
    z = model.neck(model.backbone(model.data_preprocessor(views)[0]))
    torch.testing.assert_close(model(views, mode="predict"), z / z.norm(dim=1, keepdim=True))


# BYOL


def test_byol_loss_is_the_squared_distance_of_unit_vectors(views):
    model = byol().eval()
    with torch.no_grad():
        for p in model.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    images = model.data_preprocessor(views)
    online = [model.neck(model.backbone(x)) for x in images]
    predicted = [model.head.predictor([z]) for z in online]
    targets = [model.teacher.neck(model.teacher.backbone(x)) for x in images]
    expected = 0.0
    for p, t in ((predicted[0], targets[1]), (predicted[1], targets[0])):
        p, t = (x / x.norm(dim=1, keepdim=True) for x in (p, t))
        expected = expected + (p - t).square().sum(1).mean()  # eq. 2, and its symmetric term
    torch.testing.assert_close(model(views, mode="loss").loss, expected)


def test_the_teacher_has_no_predictor_and_no_gradient(views):
    model = byol()
    assert {name.split(".")[0] for name, _ in model.teacher.named_parameters()} == {"backbone", "neck"}
    model(views, mode="loss").loss.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.head.predictor.parameters())


@pytest.mark.parametrize("step", [0, 3, 10])
def test_the_teachers_momentum_is_a_half_cosine_of_the_steps(step):
    model = byol(momentum=0.9)
    with torch.no_grad():
        for p in [*model.backbone.parameters(), *model.neck.parameters()]:
            p.add_(torch.randn_like(p))
    before = copy.deepcopy(model.teacher)
    model.after_step({}, Progress(step, 10, 0, 1))
    keep = 1 - 0.1 * (1 + math.cos(math.pi * step / 10)) / 2
    student = [*model.backbone.parameters(), *model.neck.parameters()]
    for now, old, new in zip(model.teacher.parameters(), before.parameters(), student, strict=True):
        torch.testing.assert_close(now, keep * old + (1 - keep) * new, rtol=1e-5, atol=1e-6)


# SimSiam


def test_simsiam_loss_is_half_the_negative_cosine_of_both_sides(views):
    model = simsiam().eval()
    z0, z1 = (model.neck(model.backbone(x)) for x in model.data_preprocessor(views))
    p0, p1 = model.head.predictor([z0]), model.head.predictor([z1])
    expected = -(cosine(p0, z1).mean() + cosine(p1, z0).mean()) / 2
    torch.testing.assert_close(model(views, mode="loss").loss, expected)


def test_simsiam_gradient_is_that_with_targets_held_fixed(views):
    model = simsiam().eval().double()
    images = [view.double() / 255 for view in views]
    z0, z1 = (model.neck(model.backbone(x)) for x in images)
    p0, p1 = model.head.predictor([z0]), model.head.predictor([z1])
    fixed = -(cosine(p0, z1.detach()).mean() + cosine(p1, z0.detach()).mean()) / 2
    weight = model.neck.fc0.weight
    (expected,) = torch.autograd.grad(fixed, weight)
    (got,) = torch.autograd.grad(model(images, mode="loss").loss, weight)
    torch.testing.assert_close(got, expected)


def rates(model: SimSiam) -> dict[str, tuple[float, float]]:
    """(lr, weight decay) of every parameter, half-way down."""
    optimizer = build_optimizer(Spec(SGD, weight_decay=0.1), model.param_groups(), lr=1.0)
    set_lr(optimizer, 0.5, peak_lr=1.0)
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: settings[id(p)] for name, p in model.named_parameters()}


def test_the_predictor_keeps_its_rate_and_all_is_decayed():
    for name, (lr, decay) in rates(simsiam()).items():
        assert lr == (1.0 if name.startswith("head.predictor.") else 0.5), name
        assert decay == 0.1, name


def test_the_predictors_rate_and_the_norms_decay_can_be_as_elsewhere():
    settings = rates(simsiam(fix_predictor_lr=False, decay_norms=False))
    assert {lr for lr, _ in settings.values()} == {0.5}
    assert settings["head.predictor.fc0.weight"][1] == 0.1
    assert settings["head.predictor.bn0.weight"][1] == settings["neck.fc0.bias"][1] == 0
