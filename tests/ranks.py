"""Gloo processes that live as long as the tests do: importing torch takes each of them seconds."""

import multiprocessing
import pickle
import random
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

Call = tuple[int, int, str, Callable[..., Any], tuple[Any, ...]]


class RankFailed(AssertionError):
    """A rank raised an error, whose traceback is the message, died, or did not come to an end."""


class Ranks:
    """A pool of processes, as many as any call has asked for; each call is a process group of its own.

    What the ranks imported stays, what a function sets in its modules does too: functions change no global state. After
    a failure others may wait in a collective for the one that failed: all are ended, and the next call starts new ones.
    """

    def __init__(self, timeout: float = 300) -> None:
        self.timeout = timeout
        self._members: list[tuple[BaseProcess, Connection]] = []

    def __call__(self, world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Results of `function(*arguments)` on ranks 0..world_size-1; the function must be importable by name.

        Raises RankFailed.
        """
        while len(self._members) < world_size:
            self._members.append(_start(len(self._members)))
        waiting = {connection: rank for rank, (_, connection) in enumerate(self._members[:world_size])}
        results: dict[int, Any] = {}
        deadline = time.monotonic() + self.timeout
        try:
            with tempfile.TemporaryDirectory() as folder:
                meeting = Path(folder, "meeting").as_uri()
                for connection, rank in waiting.items():
                    connection.send_bytes(pickle.dumps((rank, world_size, meeting, function, arguments)))
                while waiting:
                    ready = wait(list(waiting), timeout=deadline - time.monotonic())
                    if not ready:
                        raise RankFailed(f"ranks {sorted(waiting.values())} did not end in {self.timeout} s")
                    for connection in ready:
                        assert isinstance(connection, Connection)
                        rank = waiting.pop(connection)
                        results[rank] = _receive(connection, rank, world_size)
        except BaseException:
            self.close()
            raise
        return [results[rank] for rank in range(world_size)]

    def close(self) -> None:
        """Ends the processes."""
        for process, connection in self._members:
            connection.close()
            process.kill()
            process.join()
        self._members.clear()


def _start(number: int) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("forkserver")
    # The server imports what nearly every function uses, once; the processes are forks of it.
    context.set_forkserver_preload(["tests.small"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True, name=f"rank {number}")
    process.start()
    theirs.close()
    return process, ours


def _receive(connection: Connection, rank: int, world_size: int) -> Any:
    try:
        succeeded, result = connection.recv()
    except EOFError:
        raise RankFailed(f"rank {rank} of {world_size} died") from None
    if not succeeded:
        raise RankFailed(f"rank {rank} of {world_size}:\n{result}")
    return result


def _serve(connection: Connection) -> None:
    """A rank's life: calls until the other end is closed."""
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            # A call that cannot be unpickled, such as of a module that fails on import, is a failure like others.
            message = connection.recv_bytes()
        except EOFError:
            return
        try:
            answer = pickle.dumps((True, _carry_out(pickle.loads(message))))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        connection.send_bytes(answer)


def _carry_out(call: Call) -> Any:
    import torch
    import torch.distributed as dist

    rank, world_size, meeting, function, arguments = call
    random.seed(rank)
    torch.manual_seed(rank)
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world_size, timeout=timedelta(minutes=5)
    )
    result = function(*arguments)
    dist.barrier()
    dist.destroy_process_group()
    return result
