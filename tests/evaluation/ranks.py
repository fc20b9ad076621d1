import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(world_size: int, work: Callable[[int, int], Any]) -> list[Any]:
    """What `work(rank, world_size)` returns on each of `world_size` gloo processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_in_process, (world_size, port, work, results), nprocs=world_size)
        return [results[rank] for rank in range(world_size)]


def _in_process(rank: int, world_size: int, port: int, work: Callable[[int, int], Any], results: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    results[rank] = work(rank, world_size)
    dist.destroy_process_group()
