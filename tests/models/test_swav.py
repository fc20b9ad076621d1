"""What SwAV promises beyond MMSelfSup's numbers (tests/conformance) and worker counts (tests/distributed)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.interop import mmselfsup
from ssl_ray.models import Progress, ResNet, SwAV, SwAVHead, SwAVLoss, SwAVNeck, SwAVQueue
from ssl_ray.models.losses.sinkhorn import sinkhorn


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def swav(**options) -> SwAV:
    neck, head = SwAVNeck(64, 32, 8), SwAVHead(8, 12)
    return SwAV(ResNet(18, width=8, stem="small"), neck, head, **options)


def crops(batch: int = 4) -> list[Tensor]:
    return [torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8) for side in (16, 16, 8, 8, 8)]


def epoch(number: int) -> Progress:
    return Progress(10 * number, 100, number, 10)


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def published_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The paper's listing, in the order of its scalings, float64."""
    q = (scores.double() / epsilon).exp().T
    prototypes, rows = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True) * prototypes
        q /= q.sum(0, keepdim=True) * rows
    return (q * rows).T


@pytest.mark.parametrize("iterations", [1, 3, 7])
def test_sinkhorn_is_the_published_one(iterations):
    scores = torch.rand(40, 15) * 2 - 1
    codes = sinkhorn(scores, 0.05, iterations)
    assert codes.dtype == torch.float32
    torch.testing.assert_close(
        codes.double(), published_sinkhorn(scores, 0.05, iterations), rtol=1e-4, atol=1e-7
    )
    torch.testing.assert_close(codes.sum(1), torch.ones(40))


def test_sinkhorn_shares_the_prototypes_out_and_never_overflows():
    scores = unit(60, 8) @ unit(12, 8).T
    torch.testing.assert_close(sinkhorn(scores, 0.05, 200).sum(0), torch.full((12,), 5.0), rtol=1e-3, atol=0)
    for extreme in (torch.ones(6, 4), -torch.ones(6, 4), torch.eye(6), 1e4 * torch.randn(6, 4)):
        codes = sinkhorn(extreme.bfloat16())
        assert torch.isfinite(codes).all()
        torch.testing.assert_close(codes.sum(1), torch.ones(6))


def test_sinkhorn_axes_between_are_problems_of_their_own_and_rows_can_be_left_out():
    scores = torch.randn(10, 3, 5)
    together = sinkhorn(scores)
    for i in range(3):
        torch.testing.assert_close(together[:, i], sinkhorn(scores[:, i]))
    counted = torch.arange(14) >= 4
    torch.testing.assert_close(
        sinkhorn(torch.cat([torch.randn(4, 3, 5), scores]), counted=counted)[4:], together
    )


def test_loss_is_the_papers_sum_over_crops():
    scores = unit(6, 5, 8) @ unit(12, 8).T
    loss = SwAVLoss(temperature=0.2, epsilon=0.1, sinkhorn_iterations=4, crops_for_assign=(0, 2))
    terms = []
    for i in (0, 2):
        code = published_sinkhorn(scores[:, i], 0.1, 4)
        others = [v for v in range(5) if v != i]
        terms += [
            -(code * torch.log(F.softmax(scores[:, v].double() / 0.2, 1))).sum(1).mean() / 4 for v in others
        ]
    assert loss(scores).item() == pytest.approx((sum(terms) / 2).item(), rel=1e-5)


def test_codes_carry_no_gradient():
    scores = torch.randn(6, 3, 5, dtype=torch.float64, requires_grad=True)
    loss = SwAVLoss(temperature=0.5)
    loss(scores).backward()
    codes, p = loss.codes(scores.detach()), F.softmax(scores.detach() / 0.5, 2)
    # d CE(q, p) / d scores = (p - q) / T; two crops assign, each to two others, over six rows.
    wanted = torch.stack([p[:, 0] - codes[:, 1], p[:, 1] - codes[:, 0], 2 * p[:, 2] - codes.sum(1)], 1)
    torch.testing.assert_close(scores.grad, wanted / 0.5 / (2 * 2 * 6))


def test_crops_of_one_size_are_one_batch_of_the_backbone():
    model, batches = swav(), []
    model.backbone.register_forward_hook(lambda _, images, __: batches.append(tuple(images[0].shape)))
    output = model(crops(), mode="loss")
    assert batches == [(8, 3, 16, 16), (12, 3, 8, 8)]
    assert model.neck.projection.bn0.num_batches_tracked == 1
    assert output.state == {}


def test_rows_stay_with_their_image():
    model, views = swav().eval(), crops()
    order = torch.tensor([2, 0, 3, 1])
    loss = model(views, mode="loss").loss.item()
    assert model([v[order] for v in views], mode="loss").loss.item() == pytest.approx(loss, rel=1e-5)
    views[1] = views[1][order]  # only one crop of each image: pairs are torn apart
    assert model(views, mode="loss").loss.item() != pytest.approx(loss, rel=1e-5)


def test_prototypes_act_at_unit_length_with_the_gradient_of_unit_prototypes():
    head, z = SwAVHead(8, 12).double(), unit(6, 3, 8).double()
    torch.testing.assert_close(head.prototypes.weight.norm(dim=1), torch.ones(12, dtype=torch.float64))
    stretched = copy.deepcopy(head)
    with torch.no_grad():
        stretched.prototypes.weight *= torch.rand(12, 1, dtype=torch.float64) + 0.5
    for h in (head, stretched):
        h(h.scores(z)).backward()
    torch.testing.assert_close(stretched.scores(z), head.scores(z))
    torch.testing.assert_close(stretched.prototypes.weight.grad, head.prototypes.weight.grad)
    along = (head.prototypes.weight.grad * head.prototypes.weight).sum(1)
    assert along.abs().max() > 1e-4, "no gradient of the scaling in it"


@pytest.mark.parametrize(("at", "frozen"), [(0, True), (1, True), (2, False)])
def test_prototypes_are_frozen_for_the_first_epochs(at, frozen):
    model = swav(freeze_prototypes_epochs=2)
    weight = model.head.prototypes.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    before = weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        model(crops(), mode="loss").loss.backward()
        model.before_step(epoch(at))
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(12))
        optimizer.step()
    assert torch.allclose(weight, before, atol=1e-6) == frozen


def test_queue_holds_the_newest_first_and_says_when_it_is_full():
    queue, written = SwAVQueue(6, 2, 3), [unit(4, 2, 3) for _ in range(3)]
    assert not queue.full
    queue.enqueue(written[0])
    assert not queue.full
    assert torch.equal(queue.rows[:4], written[0])
    queue.enqueue(written[1])
    assert queue.full
    assert torch.equal(queue.rows, torch.cat([written[1], written[0][:2]]))
    queue.enqueue(torch.cat(written))
    assert torch.equal(queue.rows, torch.cat(written)[:6])
    assert set(queue.state_dict()) == {"rows"}


def test_queue_is_filled_from_its_epoch_on_and_used_once_full():
    views = crops()
    model = swav(queue_size=8, queue_start_epoch=3)
    output = model(views, mode="loss")
    without = output.loss.item()
    z = output.state["embeddings"]
    assert z.shape == (4, 2, 8)
    torch.testing.assert_close(z.norm(dim=2), torch.ones(4, 2))

    model.after_step(output.state, epoch(2))
    assert not model.queue.rows.any(), "too early"
    model.after_step(output.state, epoch(3))
    assert model(views, mode="loss").loss.item() == pytest.approx(without, rel=1e-6), "not full"
    model.queue.enqueue(unit(8, 2, 8))
    with_queue = model(views, mode="loss").loss.item()
    assert with_queue != pytest.approx(without, rel=1e-4)

    # The same with the codes of queue and batch in one matrix.
    scores = model.head.scores(torch.cat([model.queue.rows, z]))
    codes = torch.stack([published_sinkhorn(scores[:, i].detach(), 0.05, 3)[-4:] for i in range(2)], 1)
    got = model.head.loss.codes(scores[-4:], scores[:8])
    torch.testing.assert_close(got.double(), codes, rtol=1e-4, atol=1e-6)


def test_mmselfsups_weights_load_into_a_model_with_a_queue():
    source, model = swav(), swav(queue_size=8)
    theirs = mmselfsup.to_state_dict(source)
    assert torch.equal(theirs["neck.bn.weight"], theirs["neck.projection_neck.1.weight"])
    mmselfsup.load_state_dict(model, theirs)
    assert torch.equal(model.head.prototypes.weight, source.head.prototypes.weight)
    assert set(mmselfsup.to_state_dict(model)) == set(theirs)


def test_all_parameters_are_decayed_and_adapted():
    model = swav()
    (group,) = model.param_groups()
    assert len(group.params) == len(list(model.parameters()))
    assert (group.weight_decay, group.adapt) == (1.0, True)


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match=r"out_channels 8 is not head\.in_channels 9"):
        SwAV(nn.Identity(), SwAVNeck(4, 4, 8), SwAVHead(9, 12))
    with pytest.raises(UserError, match=r"crops_for_assign: \(0, 1\) of 1 views"):
        swav()(crops()[:1], mode="loss")
    parts = {
        "backbone": {"type": "ResNet", "depth": 18},
        "neck": {"type": "SwAVNeck", "in_channels": 512, "hid_channels": 4, "out_channels": 4},
        "head": {"type": "SwAVHead", "loss": {"type": "SwAVLoss", "feat_dim": 4, "num_prototypes": [3, 4]}},
    }
    with pytest.raises(UserError, match=r"num_prototypes=\[3, 4\] is not supported"):
        mmselfsup.from_config({"type": "SwAV", **parts})


def test_images_fall_to_their_nearest_prototype():
    model = swav().eval()
    with torch.no_grad():
        model.head.prototypes.weight.copy_(unit(12, 8))
        projections = model.projector(model.backbone(torch.randn(6, 3, 16, 16)))
    nearest = (projections @ model.head.prototypes.weight.T).argmax(1)
    assert model.assign(projections).tolist() == [int((nearest == k).sum()) for k in range(12)]
    assert model.cluster_sizes() is None, "no image of the training set has a prototype of its own"
