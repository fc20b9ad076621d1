"""The same global batch gives the same loss, gradients and state on 1, 2 and 4 workers, for every algorithm.

Networks, views, collectives, DDP, synchronised batch norm, teachers and memories are the real ones. What is per
worker by an algorithm's own definition - MoCo's batch norm, which sees a worker's rows, shuffled - is synchronised
here like all others, and tested for itself below.
"""

import functools

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from ssl_ray import distributed
from ssl_ray.models import ContrastiveHead, LinearNeck, MoCo, Progress, ResNet
from ssl_ray.models.sync_batch_norm import synchronize_batch_norm
from ssl_ray.paths import value_at
from ssl_ray.recipe import Recipe
from tests import small
from tests.ranks import Ranks

ROWS, STEPS = 16, 2
RTOL, ATOL = 1e-8, 1e-10


def settings(recipe: Recipe) -> dict[str, object]:
    """Batch norm that sees no groups of rows that depend on the number of workers; networks as narrow as they get."""
    wanted = {"algorithm.split_bn": 1, "algorithm.backbone.width": 4}
    return {path: value for path, value in wanted.items() if value_at(recipe, path) is not None}


def train(name: str) -> dict[str, torch.Tensor]:
    """STEPS steps on this worker's rows: losses, gradients and everything in the state dict."""
    recipe = small.recipe(name, ROWS)
    recipe = small.recipe(name, ROWS, settings(recipe))
    torch.manual_seed(0)
    algorithm = recipe.algorithm.build().double()
    views, samples = small.batch(recipe, ROWS)
    views = [distributed.local_rows(view) for view in algorithm.data_preprocessor(views)]
    views = [view.double() for view in views]
    samples = {key: distributed.local_rows(value) for key, value in samples.items()}
    extract = small.extract(recipe, algorithm)
    model = algorithm
    if distributed.is_distributed():
        algorithm = synchronize_batch_norm(algorithm, torch.device("cpu"))
        model = DistributedDataParallel(algorithm, forward_sync_buffers=False)
    optimizer = torch.optim.SGD([p for p in algorithm.parameters() if p.requires_grad], lr=0.01)
    torch.manual_seed(distributed.rank())  # as in training: workers draw different numbers
    seen = {}
    for step in range(STEPS):
        progress = Progress(step, STEPS, step, STEPS)
        algorithm.before_epoch(progress, lambda f: extract(lambda v: f([x.double() for x in v])))
        optimizer.zero_grad()
        output = model(views, samples, mode="loss")
        output.loss.backward()
        seen[f"loss {step}"] = distributed.mean(output.loss.detach())
        for key, p in algorithm.named_parameters():
            if p.grad is not None:
                seen[f"gradient {step} of {key}"] = p.grad.clone()
        algorithm.before_step(progress)
        optimizer.step()
        algorithm.after_step(output.state, progress)
    return seen | algorithm.state_dict()


def train_together(name: str) -> dict[str, torch.Tensor]:
    """As `train`, on ranks that have found out that all of them ended with what rank 0 has."""
    seen = train(name)
    mine = torch.cat([value.double().flatten() for value in seen.values()])
    assert distributed.agree(len(mine)) == [len(mine)], "not the same gradients or state on every rank"
    torch.testing.assert_close(mine, distributed.broadcast(mine.clone()), rtol=RTOL, atol=ATOL)
    return seen if distributed.rank() == 0 else {}


@functools.cache
def alone(name: str) -> dict[str, torch.Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train(name)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", small.NAMES)
@pytest.mark.parametrize("world_size", [2, 4])
def test_every_worker_equals_the_single_process(world_size, name, ranks: Ranks):
    together, *_ = ranks(world_size, train_together, name)
    assert together.keys() == alone(name).keys()
    for key, value in alone(name).items():
        torch.testing.assert_close(
            together[key], value, rtol=RTOL, atol=ATOL, msg=lambda m, k=key: f"{k}: {m}"
        )


def key_images() -> dict[str, torch.Tensor]:
    """What this worker's teacher is shown in MoCo, with batch norm of its own rows."""
    torch.manual_seed(0)
    model = shuffling_moco()
    torch.manual_seed(distributed.rank())
    seen = {}
    model.teacher.register_forward_pre_hook(lambda _, images: seen.setdefault("drawn", images[0]))
    output = model([distributed.local_rows(v) for v in random_views()], mode="loss")
    model.after_step(output.state, Progress(0, 1, 0, 1))
    return seen | {"queue": model.queue.rows, "keys": distributed.gather(output.state["keys"])}


def shuffling_moco() -> MoCo:
    # 24 is no multiple of 16: the queue wraps within a batch.
    return MoCo(
        ResNet(18, width=4, stem="small"), LinearNeck(32, 8), ContrastiveHead(0.2), 24, momentum=0.9
    ).double()


def random_views() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(ROWS, 3, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("world_size", [2, 4])
def test_teachers_see_other_rows_than_the_queries(world_size, ranks: Ranks):
    images = random_views()[1]
    per_rank = ranks(world_size, key_images)

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
    teacher = shuffling_moco().teacher
    for seen, places in zip(per_rank, dealt, strict=True):
        expected = torch.nn.functional.normalize(teacher(seen["drawn"]), dim=1)
        torch.testing.assert_close(seen["keys"][places], expected)
