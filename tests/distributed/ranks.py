"""The same function on W gloo processes."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Results of `function(*arguments)` on ranks 0..world_size-1. The function must be importable by name."""
    # The server imports once; the ranks are forks of it.
    mp.get_context("forkserver").set_forkserver_preload([function.__module__])
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _main,
            (world_size, folder, function, arguments),
            nprocs=world_size,
            start_method="forkserver",
        )
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(world_size)]


def _main(rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    meeting = pathlib.Path(folder, "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    torch.save(function(*arguments), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
