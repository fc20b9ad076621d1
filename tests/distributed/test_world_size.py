"""The same global batch gives the same loss, gradients and state on 1, 2 and 4 workers.

Batch norm sees a worker's rows only, unless synchronised, which needs GPUs: here it is replaced by group norm. The
network, the dealing of rows, the collectives, DDP, teacher and queue are the real ones.
"""

import functools

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssl_ray import distributed
from ssl_ray.models import (
    MAE,
    BaseModel,
    ContrastiveHead,
    LinearNeck,
    MAEPretrainDecoder,
    MAEPretrainHead,
    MAEViT,
    MoCo,
    NonLinearNeck,
    Progress,
    ResNet,
    SimCLR,
)
from tests.distributed.ranks import run_on_ranks

pytestmark = pytest.mark.slow
ROWS, STEPS = 16, 2


def moco() -> BaseModel:
    # 24 is no multiple of 16: the queue wraps within a batch.
    return MoCo(ResNet(18, width=4, stem="small"), LinearNeck(32, 8), ContrastiveHead(0.2), 24, momentum=0.9)


def simclr() -> BaseModel:
    return SimCLR(ResNet(18, width=4, stem="small"), NonLinearNeck(32, 32, 8), ContrastiveHead(0.5))


def mae() -> BaseModel:
    encoder = MAEViT(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    decoder = MAEPretrainDecoder(
        16, 4, embed_dim=16, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2
    )
    return MAE(encoder, decoder, MAEPretrainHead(4, norm_pix=True))


BUILDERS = {f.__name__: f for f in (moco, simclr, mae)}


def without_batch_norm(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            norm = nn.GroupNorm(1, child.num_features)
            setattr(module, name, norm.requires_grad_(child.weight.requires_grad))
        else:
            without_batch_norm(child)
    return module


def global_batch() -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(ROWS, 3, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2)]
    return views, {"mask_noise": torch.rand(ROWS, 16, generator=generator)}


def train(name: str) -> dict[str, torch.Tensor]:
    """STEPS steps on this worker's rows: losses, first gradients and everything in the state dict."""
    torch.manual_seed(0)
    algorithm = without_batch_norm(BUILDERS[name]()).double()
    torch.manual_seed(distributed.rank())  # as in training: workers draw different numbers
    model = algorithm
    if distributed.is_distributed():
        model = DistributedDataParallel(algorithm, forward_sync_buffers=False)
    views, samples = global_batch()
    views = [distributed.local_rows(view) for view in views]
    samples = {key: distributed.local_rows(value) for key, value in samples.items()}
    optimizer = torch.optim.SGD([p for p in algorithm.parameters() if p.requires_grad], lr=0.1)
    seen = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        output = model(views, samples, mode="loss")
        output.loss.backward()
        mean = distributed.sum_(output.loss.detach().clone()) / distributed.world_size()
        seen[f"loss {step}"] = mean
        for key, p in algorithm.named_parameters():
            if step == 0 and p.grad is not None:
                seen[f"gradient of {key}"] = p.grad.clone()
        optimizer.step()
        algorithm.after_step(output.state, Progress(step, STEPS, 0, 1))
    return seen | algorithm.state_dict()


Seen = dict[str, dict[str, torch.Tensor]]


def run_all() -> Seen:
    return {"key images": key_images(), **{name: train(name) for name in BUILDERS}}


@functools.cache
def alone() -> Seen:
    return run_all()


@pytest.fixture(scope="module", params=[2, 4])
def together(request) -> list[Seen]:
    return run_on_ranks(request.param, run_all)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_worker_equals_the_single_process(name, together):
    for seen in together:
        assert seen[name].keys() == alone()[name].keys()
        for key, value in alone()[name].items():
            torch.testing.assert_close(
                seen[name][key], value, rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}"
            )


def key_images() -> dict[str, torch.Tensor]:
    """What this worker's teacher is shown, with batch norm in place."""
    torch.manual_seed(0)
    model = moco().double()
    torch.manual_seed(distributed.rank())
    views, _ = global_batch()
    seen = {}
    model.teacher.register_forward_pre_hook(lambda _, images: seen.setdefault("drawn", images[0]))
    output = model([distributed.local_rows(v) for v in views], mode="loss")
    model.after_step(output.state, Progress(0, 1, 0, 1))
    return seen | {"queue": model.queue.rows, "keys": distributed.gather(output.state["keys"])}


def test_teachers_see_other_rows_than_the_queries(together):
    images = global_batch()[0][1]
    per_rank = [seen["key images"] for seen in together]
    world_size = len(per_rank)

    def rows(shown: torch.Tensor) -> list[int]:
        return [int((images == image).flatten(1).all(1).nonzero()) for image in shown]

    dealt = [rows(seen["drawn"]) for seen in per_rank]
    assert sorted(index for rank in dealt for index in rank) == list(range(ROWS)), (
        "one permutation, each image once"
    )
    assert all(set(dealt[r]) != set(range(r, ROWS, world_size)) for r in range(world_size))
    for seen in per_rank:
        torch.testing.assert_close(seen["queue"][:ROWS], seen["keys"], rtol=0, atol=0)
        torch.testing.assert_close(seen["queue"], per_rank[0]["queue"], rtol=0, atol=0)

    # Keys are in the order of the queries again, each made with the batch statistics of the worker that encoded it.
    torch.manual_seed(0)
    teacher = moco().double().teacher
    for seen, places in zip(per_rank, dealt, strict=True):
        expected = nn.functional.normalize(teacher(seen["drawn"]), dim=1)
        torch.testing.assert_close(seen["keys"][places], expected)
