"""What MoCo and SimCLR promise beyond MMSelfSup's numbers (tests/conformance) and worker counts (tests/distributed)."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from ssl_ray.errors import UserError
from ssl_ray.models import ContrastiveHead, LinearNeck, MoCo, NonLinearNeck, Progress, ResNet, SimCLR

PROGRESS = Progress(0, 10, 0, 1)


def moco(**options) -> MoCo:
    neck = NonLinearNeck(32, 32, 8, with_bias=True, with_last_bias=True, with_bn=False, with_last_bn=False)
    return MoCo(
        ResNet(18, width=4, stem="small"), neck, ContrastiveHead(0.2), **{"queue_size": 24, **options}
    )


def simclr() -> SimCLR:
    return SimCLR(ResNet(18, width=4, stem="small"), NonLinearNeck(32, 32, 8), ContrastiveHead(0.5))


both = pytest.mark.parametrize("build", [moco, simclr])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def views() -> list[torch.Tensor]:
    return [torch.randint(0, 256, (8, 3, 12, 12), dtype=torch.uint8) for _ in range(2)]


def step(model, views, optimizer):
    output = model(views, mode="loss")
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    model.after_step(output.state, PROGRESS)
    return output


@both
def test_modes(build, views):
    model = build()
    assert model(views)[0].shape == (8, 32, 2, 2)
    assert model.embed(views).shape == (8, 32)
    torch.testing.assert_close(model(views, mode="predict").norm(dim=1), torch.ones(8))
    with pytest.raises(ValueError, match="'tensor', 'loss', 'predict'"):
        model(views, mode="train")


@both
def test_loss_writes_nothing_but_batch_statistics(build, views):
    model = build()
    before = copy.deepcopy(model.state_dict())
    first, second = (model(views, mode="loss").loss for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert all(
        k.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for k in changed
    )


@both
def test_a_restored_model_goes_on_with_the_same_loss(build, views):
    model = build()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        step(model, views, optimizer)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    restored = build()
    restored.load_state_dict(torch.load(file, weights_only=True))
    expected, loss = (m(views, mode="loss").loss for m in (model, restored))
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


@both
def test_descent_lowers_the_loss_of_a_fixed_batch(build, views):
    model = build()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(4):  # teacher and queue stay: only the gradient acts
        output = model(views, mode="loss")
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses == sorted(losses, reverse=True)


@both
def test_bf16_autocast_is_finite_and_judged_in_float32(build, views):
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(views, mode="loss")
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.after_step(output.state, PROGRESS)


@both
def test_compiled_loss_is_the_same(build, views, compiler):
    model = build()
    expected = model(views, mode="loss").loss
    loss = torch.compile(model, backend=compiler)(views, mode="loss").loss
    torch.testing.assert_close(loss, expected)
    assert compiler.op_count > 0


# MoCo


def test_keys_are_negatives_of_later_batches_only(views):
    model = moco()
    output = model(views, mode="loss")
    assert output.state["keys"].shape == (8, 8)
    torch.testing.assert_close(output.state["keys"].norm(dim=1), torch.ones(8))
    assert not output.state["keys"].requires_grad
    assert not torch.isin(output.state["keys"], model.queue.rows).any()
    model.after_step(output.state, PROGRESS)
    torch.testing.assert_close(model.queue.rows[:8], output.state["keys"], rtol=0, atol=0)


def test_moco_loss_from_its_parts(views):
    model = moco().eval()
    output = model(views, mode="loss")
    q, k = model(views, mode="predict"), output.state["keys"]
    rows = []
    for i in range(8):
        positive = (q[i] @ k[i] / 0.2).exp()
        others = sum((q[i] @ old / 0.2).exp() for old in model.queue.rows)
        rows.append(-(positive / (positive + others)).log())
    torch.testing.assert_close(output.loss, torch.stack(rows).mean())


def test_a_collapsed_moco_is_at_the_ceiling(views):
    model = moco()
    for module in (model.neck, model.teacher.neck):
        nn.init.zeros_(module.fc1.weight)
        nn.init.ones_(module.fc1.bias)
    model.queue.rows.fill_(8**-0.5)
    output = model(views, mode="loss")
    assert output.loss.item() == pytest.approx(math.log(1 + 24), rel=1e-5)
    assert output.metrics["contrast_top1"] == 0


def test_a_shuffle_on_one_worker_changes_rounding_only(views):
    model = moco().double()
    shuffle = torch.randperm(8)
    views = [view.double() / 255 for view in views]
    plain = model(views, mode="loss").loss
    torch.testing.assert_close(model(views, {"shuffle": shuffle}, mode="loss").loss, plain)


def test_split_bn_encodes_shuffled_groups_and_returns_keys_in_order(views):
    model = moco(split_bn=2)
    shuffle = torch.randperm(8)
    keys = model(views, {"shuffle": shuffle}, mode="loss").state["keys"]
    images = model.data_preprocessor(views)[1]
    for group in shuffle.chunk(2):
        alone = nn.functional.normalize(model.teacher(images[group]), dim=1)
        torch.testing.assert_close(keys[group], alone)


def test_the_teacher_starts_from_the_pretrained_backbone(tmp_path):
    source = ResNet(18, width=4, stem="small")
    torch.save(source.state_dict(), tmp_path / "backbone.pt")
    model = moco(pretrained=str(tmp_path / "backbone.pt"))
    for module in (model.backbone, model.teacher.backbone):
        torch.testing.assert_close(module.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_a_neck_that_hides_its_output_length_is_refused():
    with pytest.raises(UserError, match="Identity has no int attribute out_channels"):
        MoCo(ResNet(18, width=4), nn.Identity(), ContrastiveHead())


def test_linear_neck_makes_moco_v1(views):
    model = MoCo(ResNet(18, width=4, stem="small"), LinearNeck(32, 6), ContrastiveHead(0.07), queue_size=10)
    assert model.queue.rows.shape == (10, 6)
    assert model(views, mode="loss").loss.isfinite()


# SimCLR


def nt_xent(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """Equation 1 of the paper, term by term, for unit vectors a_i, b_i of image i."""
    z = [v for pair in zip(a, b, strict=True) for v in pair]
    total = torch.zeros(())
    for i in range(len(z)):
        j = i + 1 if i % 2 == 0 else i - 1
        others = sum((z[i] @ z[k] / temperature).exp() for k in range(len(z)) if k != i)
        total = total - ((z[i] @ z[j] / temperature).exp() / others).log()
    return total / len(z)


def test_simclr_loss_is_nt_xent(views):
    model = simclr().eval()
    a, b = (model([view], mode="predict") for view in views)
    torch.testing.assert_close(model(views, mode="loss").loss, nt_xent(a, b, 0.5))


def test_the_order_of_images_does_not_matter(views):
    model, order = simclr().double(), torch.randperm(8)
    views = [view.double() / 255 for view in views]
    permuted = model([view[order] for view in views], mode="loss").loss
    torch.testing.assert_close(permuted, model(views, mode="loss").loss)


def test_a_collapsed_simclr_is_at_the_ceiling(views):
    model = simclr()
    nn.init.zeros_(model.neck.bn1.weight)
    nn.init.ones_(model.neck.bn1.bias)
    output = model(views, mode="loss")
    assert output.loss.item() == pytest.approx(math.log(2 * 8 - 1), rel=1e-5)
    assert output.metrics["contrast_top1"] == 0


def test_batch_norm_sees_both_views(views):
    model = simclr()
    model(views, mode="loss")
    assert model.backbone.bn1.num_batches_tracked == 1
