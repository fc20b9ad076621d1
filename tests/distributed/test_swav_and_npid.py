"""What the comparison of all algorithms does not reach: SwAV with a full queue, and NPID's draws by themselves."""

import pytest
import torch

from ssl_ray import distributed
from ssl_ray.models import (
    NPID,
    ContrastiveHead,
    LinearNeck,
    Progress,
    ResNet,
    SimpleMemory,
    SwAV,
    SwAVHead,
    SwAVNeck,
)
from ssl_ray.models.losses.sinkhorn import sinkhorn
from ssl_ray.models.sync_batch_norm import synchronize_batch_norm
from tests.ranks import Ranks

ROWS = 16


def codes() -> torch.Tensor:
    scores = torch.randn(ROWS, 2, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return sinkhorn(distributed.local_rows(scores))


def swav_with_queue() -> dict[str, torch.Tensor]:
    """Two steps; the queue, of 20 images, is no multiple of the batch and full before the second."""
    torch.manual_seed(0)
    # With 3 prototypes more than the batch has rows, the queue matters.
    head = SwAVHead(8, ROWS + 3)
    model = SwAV(
        ResNet(18, width=8, stem="small"), SwAVNeck(64, 16, 8), head, queue_size=20, queue_start_epoch=0
    )
    model = synchronize_batch_norm(model.double(), torch.device("cpu"))
    model.queue.rows[:16] = torch.nn.functional.normalize(torch.randn(16, 2, 8, dtype=torch.float64), dim=2)
    views = [torch.randn(ROWS, 3, side, side, dtype=torch.float64) for side in (12, 12, 8)]
    seen = {}
    for step in range(2):
        model.zero_grad()
        output = model([distributed.local_rows(view) for view in views], mode="loss")
        output.loss.backward()
        seen[f"loss {step}"] = distributed.mean(output.loss.detach())
        for name, p in model.named_parameters():
            seen[f"gradient {step} of {name}"] = distributed.mean(p.grad)
        seen[f"full {step}"] = model.queue.full
        model.after_step(output.state, Progress(step, 2, 0, 1))
    return seen | model.state_dict()


def negatives() -> torch.Tensor:
    bank = SimpleMemory(100, 8)
    model = NPID(
        ResNet(18, width=8, stem="small"), LinearNeck(64, 8), ContrastiveHead(), bank, 40, ensure_neg=True
    )
    torch.manual_seed(distributed.rank())
    return model._draw(distributed.local_rows(torch.arange(ROWS)))


@pytest.mark.parametrize("world_size", [2, 4])
def test_prototypes_are_shared_out_over_all_workers(world_size, ranks: Ranks):
    alone = codes()
    for rank, part in enumerate(ranks(world_size, codes)):
        torch.testing.assert_close(part, alone[rank::world_size], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("world_size", [2, 4])
def test_swavs_queue_is_one_queue(world_size, ranks: Ranks):
    alone = swav_with_queue()
    assert [bool(alone[f"full {step}"]) for step in range(2)] == [False, True]
    for seen in ranks(world_size, swav_with_queue):
        assert seen.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(
                seen[key], value, rtol=1e-8, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}"
            )


@pytest.mark.parametrize("world_size", [2, 4])
def test_an_image_has_the_same_negatives_on_any_number_of_workers(world_size, ranks: Ranks):
    alone = negatives()
    for rank, drawn in enumerate(ranks(world_size, negatives)):
        assert torch.equal(drawn, alone[rank::world_size])
