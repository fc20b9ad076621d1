"""A bare torch DDP loop over gloo with the same sleep: processes, batches in memory, nothing else."""

import tempfile
import time
from typing import Any

import numpy as np

from ssl_ray.data.source import open_dataset
from ssl_ray.recipe import Recipe

SKIP = 15  # steps: the allocator and DDP's buckets settle


def bare_steps(recipes: list[Recipe], workers: int) -> list[float]:
    """Mean seconds of a step of each recipe, on as many processes, without the first steps."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        queue = context.Queue()
        started = [
            context.Process(target=_rank, args=(rank, workers, recipes, folder, queue))
            for rank in range(workers)
        ]
        for process in started:
            process.start()
        seconds: list[float] = queue.get()
        for process in started:
            process.join()
    return seconds


def _rank(rank: int, workers: int, recipes: list[Recipe], folder: str, queue: Any) -> None:
    import torch
    from torch import distributed, nn

    from ssl_ray.data.blocks import StreamConfig, make_block
    from ssl_ray.data.plan import Plan

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=workers)
    source = open_dataset("fashion").train
    result = []
    for recipe in recipes:
        training = recipe.training
        plan = Plan(source.info.num_samples, training.global_batch_size, training.seed)
        columns, _ = make_block(StreamConfig(source, recipe.views.build(), plan, 1), 0, 1, rank, workers)
        views = [torch.from_numpy(columns["view_0"]).permute(0, 3, 1, 2)]
        samples = {"index": torch.from_numpy(columns["index"])}
        algorithm = recipe.algorithm.build()
        model = nn.parallel.DistributedDataParallel(algorithm) if workers > 1 else algorithm
        optimizer = torch.optim.SGD(algorithm.parameters(), lr=1e-6)
        times = [0.0]
        for _ in range(training.max_steps or 0):
            model(views, samples, mode="loss").loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            times.append(time.perf_counter())
        result.append(float(np.mean(np.diff(times[1 + SKIP :]))))
    if rank == 0:
        queue.put(result)
    distributed.barrier()
    distributed.destroy_process_group()
