import copy

import pytest
import torch
from torch import nn

from ssl_ray.models import LinearNeck, Progress, Queue, ResNet, Teacher
from ssl_ray.models.teacher import cosine_momentum


@pytest.mark.parametrize("batches", [(3, 3, 3), (8,), (5, 20, 2), (7, 1, 7)])
def test_queue_holds_the_last_rows_whatever_the_batches(batches):
    queue, written = Queue(8, 2), []
    initial = queue.rows.clone()
    for size in batches:
        first = len(written)
        rows = [torch.full((2,), float(first + i)) for i in range(size)]
        queue.enqueue(torch.stack(rows))
        written += rows
    expected = initial
    for i, row in enumerate(written):  # one by one, as a ring
        expected[i % 8] = row
    torch.testing.assert_close(queue.rows, expected, rtol=0, atol=0)
    assert queue.pointer.item() == len(written) % 8


def test_queue_starts_with_random_unit_rows_and_is_saved():
    queue = Queue(50, 16)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(50))
    assert (queue.rows @ queue.rows.T).fill_diagonal_(0).abs().max() < 0.95
    assert set(queue.state_dict()) == {"rows", "pointer"}


def test_teacher_averages_parameters_and_copies_buffers():
    torch.manual_seed(0)
    backbone, neck = ResNet(18, width=4, stem="small"), LinearNeck(32, 8)
    teacher = Teacher(backbone, neck)
    with torch.no_grad():
        for p in [*backbone.parameters(), *neck.parameters()]:
            p.add_(torch.randn_like(p))
    backbone(torch.randn(4, 3, 8, 8))  # moves the student's BN statistics
    before, student = copy.deepcopy(teacher).state_dict(), {}
    student |= {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    student |= {f"neck.{k}": v for k, v in neck.state_dict().items()}
    teacher.update(backbone, neck, momentum=0.9)
    averaged = {name for name, _ in teacher.named_parameters()}
    for key, value in teacher.state_dict().items():
        mean = 0.9 * before[key] + 0.1 * student[key]
        torch.testing.assert_close(value, mean if key in averaged else student[key], rtol=1e-6, atol=1e-6)
    assert teacher.backbone.bn1.num_batches_tracked == 1


def test_teacher_takes_no_gradient_and_follows_the_mode():
    neck = nn.Linear(3, 2)
    model = nn.ModuleDict({"teacher": Teacher(nn.BatchNorm1d(3), neck)})
    assert not any(p.requires_grad for p in model.parameters())
    assert not model["teacher"](torch.randn(4, 3, requires_grad=True)).requires_grad
    assert model["teacher"].backbone.training
    model.eval()
    assert not model["teacher"].backbone.training


def test_momentum_one_keeps_and_zero_copies():
    student, teacher = nn.Linear(3, 2), Teacher(nn.Linear(3, 2))
    before = teacher.backbone.weight.clone()
    teacher.update(student, None, 1.0)
    torch.testing.assert_close(teacher.backbone.weight, before, rtol=0, atol=0)
    teacher.update(student, None, 0.0)
    torch.testing.assert_close(teacher.backbone.weight, student.weight, rtol=0, atol=0)


def test_cosine_momentum_goes_from_base_to_one():
    # Recorded from MMSelfSup 1.0: base 0.99, 20 iterations.
    recorded = {0: 0.99, 1: 0.9900615583004433, 5: 0.9914644661713388, 15: 0.9985355339270131, 20: 1.0}
    for step, value in recorded.items():
        assert cosine_momentum(0.99, Progress(step, 20, 0, 1)) == pytest.approx(value, abs=1e-8)
