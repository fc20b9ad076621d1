"""What NPID promises beyond MMSelfSup's numbers (tests/conformance) and worker counts (tests/distributed)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.interop import mmselfsup
from ssl_ray.models import NPID, ContrastiveHead, LinearNeck, Progress, ResNet, SimpleMemory
from ssl_ray.models.memories import simple_memory

IMAGES = 20


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def npid(**options) -> NPID:
    parts = ResNet(18, width=8, stem="small"), LinearNeck(64, 8), ContrastiveHead(0.1)
    return NPID(*parts, SimpleMemory(IMAGES, 8), **{"num_negatives": 50, **options})


def batch() -> tuple[list[Tensor], dict[str, Tensor]]:
    return [torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)], {"index": torch.tensor([3, 19, 0, 7])}


def test_similarities_are_products_with_the_wanted_rows(monkeypatch):
    memory, z, index = SimpleMemory(IMAGES, 8), torch.randn(7, 8), torch.randint(IMAGES, (7, 30))
    expected = torch.einsum("bd,bkd->bk", z, memory.rows[index])
    torch.testing.assert_close(memory.similarities(z, index), expected)
    monkeypatch.setattr(simple_memory, "_AT_ONCE", 3 * IMAGES)  # rows in groups of 3, 3 and 1
    torch.testing.assert_close(memory.similarities(z, index), expected)


def test_memory_moves_the_given_rows_and_keeps_unit_length():
    memory = SimpleMemory(IMAGES, 8, momentum=0.8)
    before, new, index = memory.rows.clone(), torch.randn(3, 8), torch.tensor([5, 0, 11])
    torch.testing.assert_close(before.norm(dim=1), torch.ones(IMAGES))
    memory.update(index, new)
    torch.testing.assert_close(memory.rows[index], F.normalize(0.8 * before[index] + 0.2 * new, dim=1))
    others = [i for i in range(IMAGES) if i not in index.tolist()]
    assert torch.equal(memory.rows[others], before[others])
    torch.testing.assert_close(memory.rows.norm(dim=1), torch.ones(IMAGES))
    assert set(memory.state_dict()) == {"rows"}


def test_loss_is_the_softmax_of_the_own_row_among_the_negatives():
    model, (views, samples) = npid().double(), batch()
    views = [view.double() / 255 for view in views]
    samples["negatives"] = torch.randint(IMAGES, (4, 50))
    output = model(views, samples, mode="loss")
    v, bank = output.state["embeddings"], model.memory.rows
    torch.testing.assert_close(v.norm(dim=1), torch.ones(4, dtype=torch.float64))
    terms = []
    for row, own, negatives in zip(v, samples["index"], samples["negatives"], strict=True):
        e = [math.exp(row @ bank[i] / 0.1) for i in (own, *negatives)]
        terms.append(-math.log(e[0] / sum(e)))
    assert output.loss.item() == pytest.approx(sum(terms) / 4, rel=1e-9)


def test_without_signal_the_loss_is_the_logarithm_of_the_candidates():
    model, (views, samples) = npid(), batch()
    model.memory.rows.copy_(model.memory.rows[:1].expand(IMAGES, -1))
    assert model(views, samples, mode="loss").loss.item() == pytest.approx(math.log(51), rel=1e-5)


@pytest.mark.parametrize("ensure_neg", [False, True])
def test_negatives_are_uniform_and_each_rows_own(ensure_neg):
    model = npid(num_negatives=20000, ensure_neg=ensure_neg)
    index = torch.tensor([0, 7, 7, IMAGES - 1])
    drawn = model._draw(index)
    assert drawn.shape == (4, 20000)
    assert not torch.equal(drawn[1], drawn[2])
    for own, row in zip(index.tolist(), drawn, strict=True):
        counts = torch.bincount(row, minlength=IMAGES).float()
        expected = torch.full((IMAGES,), 20000 / (IMAGES - ensure_neg))
        if ensure_neg:
            expected[own] = 0
        assert (counts - expected).abs().max() < 6 * (20000 / IMAGES) ** 0.5
        assert (counts[own] == 0) == ensure_neg


def test_bank_is_written_after_the_step_with_the_embeddings_of_the_loss():
    model, (views, samples) = npid(), batch()
    before = model.memory.rows.clone()
    output = model(views, samples, mode="loss")
    assert torch.equal(model.memory.rows, before)
    model.after_step(output.state, Progress(0, 10, 0, 1))
    index = samples["index"]
    wanted = F.normalize((before[index] + output.state["embeddings"]) / 2, dim=1)
    torch.testing.assert_close(model.memory.rows[index], wanted)


def test_mmselfsups_momentum_weighs_the_new_vector():
    parts = {
        "backbone": {"type": "ResNet", "depth": 18},
        "neck": {"type": "LinearNeck", "in_channels": 512, "out_channels": 8},
        "head": {"type": "ContrastiveHead", "temperature": 0.07},
    }
    memory = {"type": "SimpleMemory", "length": 9, "feat_dim": 8, "momentum": 0.3}
    config = {"type": "NPID", **parts, "memory_bank": memory, "neg_num": 5, "ensure_neg": True}
    model = mmselfsup.from_config(config)
    assert model.memory.momentum == pytest.approx(0.7)
    assert (model.memory.rows.shape, model.num_negatives, model.ensure_neg) == ((9, 8), 5, True)


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match=r"out_channels 4 is not memory\.dim 8"):
        NPID(nn.Identity(), LinearNeck(4, 4), ContrastiveHead(), SimpleMemory(IMAGES, 8))
    with pytest.raises(UserError, match=r"ensure_neg=True with a memory of 1 image"):
        NPID(nn.Identity(), LinearNeck(4, 8), ContrastiveHead(), SimpleMemory(1, 8), ensure_neg=True)
