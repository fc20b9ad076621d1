"""The cluster may go under its driver: who has lost the head, or this node's raylet, says so in a line and ends.

Left alone, calls to actors wait for ever, until Ray's core ends the process: with the head after a minute and a page of
its own, with the raylet (through which every object comes) at the next object, without a word.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from ssl_ray.console import last_line
from ssl_ray.errors import ClusterLost
from ssl_ray.training import local_cluster

# Ray's core gives up on a head after so long; a head that keeps its state elsewhere may come back until then.
_PATIENCE, _PATIENCE_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
# By how much we are earlier.
EARLIER_S = 10.0
# A raylet does not come back, and Ray's core ends the process at the next object that it should have held.
RAYLET_PATIENCE_S = 2.0
POLL_S = 0.5
# The main thread is told, and ends in order. It is waited for no longer than this, for it may hang in Ray.
LEAVE_S = 60.0
EXIT = 2
_TELL = signal.SIGUSR2


@dataclass
class Part:
    """Something without which there is no cluster. patience: seconds of silence before it counts as lost."""

    name: str
    answers: Callable[[], bool]
    patience: float


@contextmanager
def watched(hint: str, parts: Sequence[Part] | None = None) -> Iterator[None]:
    """Around work on a cluster: raises ClusterLost in the main thread when the cluster is lost. hint: what to do then.

    parts: of the cluster, by default of the one that was joined. A main thread that does not come out of its call to
    Ray ends with the process; so does a body in another thread.
    """
    parts = parts_of_cluster() if parts is None else parts
    over = threading.Event()
    lost: list[ClusterLost] = []
    in_main = threading.current_thread() is threading.main_thread()

    def tell(number: int, frame: Any) -> None:
        if lost and not over.is_set():
            raise lost[0]

    def watch() -> None:
        heard = {part.name: time.monotonic() for part in parts}
        while not over.wait(POLL_S):
            for part in parts:
                if part.answers():
                    heard[part.name] = time.monotonic()
                elif time.monotonic() - heard[part.name] > part.patience and not over.is_set():
                    lost.append(ClusterLost(f"{part.name} is gone; {hint}"))
                    _end(lost[0], over, in_main)
                    return

    before = signal.signal(_TELL, tell) if in_main else None
    thread = threading.Thread(target=watch, name="head", daemon=True)
    thread.start()
    try:
        yield
    except ClusterLost:
        raise
    except BaseException as error:
        if lost:  # within a call to Ray what a signal's handler raises may come out as something else
            raise lost[0] from error
        # A call to Ray may have met it first, and says what was lost with it.
        of_ray = any(isinstance(one, ray.exceptions.RayError) for one in (error, error.__cause__))
        gone = next((part.name for part in parts if of_ray and not part.answers()), None)
        if gone is None:
            raise
        raise ClusterLost(f"{gone} is gone; {hint}") from error
    finally:
        over.set()
        thread.join()
        if in_main:
            signal.signal(_TELL, before)


def _end(error: ClusterLost, over: threading.Event, in_main: bool) -> None:
    """In the watching thread: ends the body, with the process if need be."""
    main = threading.main_thread().ident
    if in_main and main is not None:
        signal.pthread_kill(main, _TELL)
        if over.wait(LEAVE_S):
            return
    print(f"\n{last_line(error)}", file=sys.stderr, flush=True)
    os._exit(EXIT)  # whatever waits for Ray would not end


def parts_of_cluster() -> list[Part]:
    """What the joined cluster stands on, as seen from this process."""
    if (own := local_cluster.current()) is not None:  # processes of ours, of which none comes back
        names = {"raylet": "Ray's raylet (a process of this command)", "gcs_server": "the cluster's head"}
        return [Part(name, partial(own.lives, kind), 0.0) for kind, name in names.items()]
    head = str(ray.get_runtime_context().gcs_address)
    patience = float(os.environ.get(_PATIENCE, _PATIENCE_S)) - EARLIER_S
    parts = [Part(f"the cluster's head at {head}", partial(listens, head), patience)]
    here = ray.get_runtime_context().get_node_id()
    for one in ray.nodes():
        if one["NodeID"] == here:
            raylet = f"{one['NodeManagerAddress']}:{one['NodeManagerPort']}"
            parts.append(
                Part(f"Ray's raylet on this node ({raylet})", partial(present, raylet), RAYLET_PATIENCE_S)
            )
    return parts


def listens(address: str) -> bool:
    """Whether somebody takes calls there."""
    try:
        _connect(address)
    except OSError:
        return False
    return True


def present(address: str) -> bool:
    """Whether somebody is there, be it one too busy to answer."""
    try:
        _connect(address)
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=2.0).close()
