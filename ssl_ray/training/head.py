"""The cluster's head may go: a driver that has lost it says so in one line and ends, rather than wait for ever.

Left alone, Ray's core aborts the driver's process in the end, with a page of its own; calls to actors wait until then.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

# Ray's core gives up on a head after so long; a head that keeps its state elsewhere may come back until then.
_PATIENCE, _PATIENCE_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
# By how much we are earlier.
EARLIER_S = 10.0
POLL_S = 1.0
EXIT = 2


@contextmanager
def watched(hint: str) -> Iterator[None]:
    """While the body runs, ends this process when the head of the joined cluster is lost. hint: what to do then."""
    address = str(ray.get_runtime_context().gcs_address)
    patience = float(os.environ.get(_PATIENCE, _PATIENCE_S)) - EARLIER_S
    over = threading.Event()

    def watch() -> None:
        heard = time.monotonic()
        while not over.wait(POLL_S):
            if _listens(address):
                heard = time.monotonic()
            elif time.monotonic() - heard > patience and not over.is_set():
                print(
                    f"\nssl-ray: the cluster's head at {address} is gone; {hint}", file=sys.stderr, flush=True
                )
                os._exit(EXIT)  # whatever waits for Ray would not end

    threading.Thread(target=watch, name="head", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2 * POLL_S).close()
    except OSError:
        return False
    return True
