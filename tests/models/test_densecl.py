"""What DenseCL promises beyond MMSelfSup's numbers (tests/conformance) and the contract (tests/contract)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.models import ContrastiveHead, DenseCL, DenseCLNeck, Progress, ResNet
from ssl_ray.models.algorithms.densecl import correspondence
from ssl_ray.models.shuffle_bn import encode, encode_shuffled

ROWS, DIM, QUEUE = 6, 5, 20


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def densecl(num_grid: int | None = None, **options) -> DenseCL:
    neck = DenseCLNeck(64, 16, DIM, num_grid)
    options = {"queue_size": QUEUE, "start_iters": 0, **options}
    return DenseCL(ResNet(18, width=8, stem="small"), neck, ContrastiveHead(0.2), **options).double()


@pytest.fixture
def views() -> list[Tensor]:
    return [torch.randn(ROWS, 3, 24, 24, dtype=torch.float64) for _ in range(2)]  # maps of 3 x 3


def info_nce(query: Tensor, key: Tensor, negatives: Tensor) -> Tensor:
    positive = (query @ key / 0.2).exp()
    return -(positive / (positive + sum((query @ n / 0.2).exp() for n in negatives))).log()


def test_the_projector_makes_the_images_projection(views):
    model = densecl().eval()
    maps = model.backbone(views[0])
    torch.testing.assert_close(model.projector(maps), model.neck.mlp(maps[-1].mean((2, 3))))


@pytest.mark.parametrize("num_grid", [None, 2])
def test_loss_cell_by_cell(views, num_grid):
    model = densecl(num_grid, loss_lambda=0.3).eval()
    output = model(views, mode="loss")
    q, k = model.neck(model.backbone(views[0])), model.teacher(views[1])
    single, dense = [], []
    for row in range(ROWS):
        image_q, image_k = (F.normalize(p.image[row], dim=0) for p in (q, k))
        single.append(info_nce(image_q, image_k, model.queue.rows))
        for i in range(q.cells.shape[2]):
            similarity = [F.cosine_similarity(q.features[row, :, i], f, dim=0) for f in k.features[row].T]
            j = int(torch.stack(similarity).argmax())
            cell_q, cell_k = F.normalize(q.cells[row, :, i], dim=0), F.normalize(k.cells[row, :, j], dim=0)
            dense.append(info_nce(cell_q, cell_k, model.dense_queue.rows))
    single, dense = torch.stack(single).mean(), torch.stack(dense).mean()
    torch.testing.assert_close(output.metrics["loss_single"], 0.7 * single)
    torch.testing.assert_close(output.metrics["loss_dense"], 0.3 * dense)
    torch.testing.assert_close(output.loss, 0.7 * single + 0.3 * dense)


def test_identical_views_match_cell_by_cell(views):
    cells = F.normalize(torch.randn(4, 8, 9), dim=1)
    order = torch.randperm(9)
    assert torch.equal(correspondence(cells, cells), torch.arange(9).expand(4, 9))
    assert torch.equal(correspondence(cells, cells[:, :, order]), order.argsort().expand(4, 9))

    model = densecl().eval()  # the teacher is still a copy
    output = model([views[0], views[0]], mode="loss")
    q = F.normalize(model.neck(model.backbone(views[0])).image, dim=1)
    torch.testing.assert_close((q * output.state["keys"]).sum(1), torch.ones(ROWS, dtype=torch.float64))


def test_neck_projects_the_average_and_every_cell():
    neck, maps = DenseCLNeck(8, 7, DIM).double(), torch.randn(2, 8, 2, 3, dtype=torch.float64)
    projection = neck((maps,))
    torch.testing.assert_close(projection.image, neck.mlp(maps.mean((2, 3))))
    first, second = (layer.weight.squeeze() for layer in (neck.mlp2[0], neck.mlp2[2]))
    hidden = (first @ maps[1, :, 1, 2] + neck.mlp2[0].bias).relu()
    torch.testing.assert_close(projection.cells[1, :, 5], second @ hidden + neck.mlp2[2].bias)  # row by row
    torch.testing.assert_close(projection.pooled, projection.cells.mean(2))
    torch.testing.assert_close(projection.features, maps.flatten(2))


def test_num_grid_pools_cells_and_what_they_are_matched_by():
    neck, maps = DenseCLNeck(8, 7, DIM, num_grid=2).double(), torch.randn(2, 8, 4, 4, dtype=torch.float64)
    projection = neck((maps,))
    pooled = F.avg_pool2d(maps, 2)
    torch.testing.assert_close(projection.features, pooled.flatten(2))
    torch.testing.assert_close(projection.cells, neck.mlp2(pooled).flatten(2))
    torch.testing.assert_close(projection.image, neck.mlp(maps.mean((2, 3))))


def test_both_queues_are_written_after_the_step_and_turn(views):
    model = densecl()
    output = model(views, mode="loss")
    state = output.state
    assert not torch.isin(state["dense_keys"], model.dense_queue.rows).any()
    for name in ("keys", "dense_keys"):
        torch.testing.assert_close(state[name].norm(dim=1), torch.ones(ROWS, dtype=torch.float64))
    for step in range(4):  # 24 rows into 20
        model.after_step(state, Progress(step, 10, 0, 1))
    for queue, name in ((model.queue, "keys"), (model.dense_queue, "dense_keys")):
        assert queue.pointer == 4 * ROWS - QUEUE
        written = torch.cat([state[name]] * 4)
        torch.testing.assert_close(queue.rows, torch.cat([written[QUEUE:], written[4:QUEUE]]))


def test_dense_keys_are_the_teachers_mean_projection(views):
    model = densecl().eval()
    expected = F.normalize(model.teacher(views[1]).cells.mean(2), dim=1)
    torch.testing.assert_close(model(views, mode="loss").state["dense_keys"], expected)


def test_no_dense_part_before_start_iters(views):
    model = densecl(start_iters=3)
    for step in range(5):
        output = model(views, mode="loss")
        assert (output.metrics["loss_dense"] == 0) == (step < 3)
        model.zero_grad()
        output.loss.backward()
        assert (model.neck.mlp2[0].weight.grad.abs().max() == 0) == (step < 3)
        restored = densecl(start_iters=3)
        restored.load_state_dict(model.state_dict())
        torch.testing.assert_close(restored(views, mode="loss").loss, output.loss)
        model.after_step(output.state, Progress(step, 10, 0, 1))
    plain = densecl(start_iters=3)(views, mode="loss")
    torch.testing.assert_close(plain.loss, plain.metrics["loss_single"])


def test_the_dense_negatives_are_those_of_the_dense_queue(views):
    model = densecl()
    before = model(views, mode="loss").metrics
    model.dense_queue.rows.neg_()
    after = model(views, mode="loss").metrics
    torch.testing.assert_close(after["loss_single"], before["loss_single"])
    assert after["loss_dense"] != before["loss_dense"]


def test_a_collapsed_model_is_at_the_ceiling(views):
    model = densecl()
    for module in (model.neck, model.teacher.neck):
        for last in (module.mlp[2], module.mlp2[2]):
            nn.init.zeros_(last.weight)
            nn.init.ones_(last.bias)
    for queue in (model.queue, model.dense_queue):
        queue.rows.fill_(DIM**-0.5)
    assert model(views, mode="loss").loss.item() == pytest.approx(math.log(1 + QUEUE))


def test_shuffled_groups_give_all_keys_back_in_order(views):
    model = densecl(split_bn=2)
    shuffle = torch.randperm(ROWS)
    state = model(views, {"shuffle": shuffle}, mode="loss").state
    for group in shuffle.chunk(2):
        alone = model.teacher(views[1][group])
        torch.testing.assert_close(state["keys"][group], F.normalize(alone.image, dim=1))
        torch.testing.assert_close(state["dense_keys"][group], F.normalize(alone.pooled, dim=1))


def test_encode_shuffled_returns_every_output_in_the_order_of_the_images():
    images, norm = torch.randn(8, 3), nn.BatchNorm1d(3)
    outputs = encode_shuffled(lambda x: (x, norm(x)), images, groups=4)
    torch.testing.assert_close(outputs[0], images)
    in_order = encode(lambda x: (x, norm(x)), images, groups=4)
    torch.testing.assert_close(in_order[1][2:4], norm(images[2:4]))
    assert not torch.allclose(outputs[1], in_order[1]), "groups are dealt anew"


def test_without_shuffle_bn_groups_are_runs_of_rows(views):
    model = densecl(shuffle_bn=False, split_bn=3)
    keys = model(views, mode="loss").state["keys"]
    torch.testing.assert_close(keys[:2], F.normalize(model.teacher(views[1][:2]).image, dim=1))


def test_groups_are_of_one_size(views):
    with pytest.raises(UserError, match="split_bn: 4 groups cannot share 6 images evenly"):
        densecl(split_bn=4)(views, mode="loss")


def test_predict_is_the_unit_backbone_map(views):
    model = densecl(num_grid=2).eval()
    prediction = model(views[:1], mode="predict")
    expected = model.backbone(views[0])[-1].flatten(2)
    torch.testing.assert_close(prediction, expected / expected.norm(dim=1, keepdim=True))


def test_a_neck_that_hides_its_output_length_is_refused():
    with pytest.raises(UserError, match="Identity has no int attribute out_channels"):
        DenseCL(ResNet(18, width=8), nn.Identity(), ContrastiveHead())
