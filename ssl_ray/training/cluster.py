"""The Ray cluster a run uses: started here or joined, quiet, and known to be large enough before anything starts."""

import logging
import os
import re
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from ssl_ray.errors import ClusterLost, UserError, first_line
from ssl_ray.training import growth, local_cluster
from ssl_ray.training.stops import held
from ssl_ray.training.token import has_token

CONNECT_TIMEOUT_S = 10
_HOST_PORT = re.compile(r"[^/\s]+:\d+")
# The cheapest call to a cluster's head; an empty request is a valid one.
_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
# Of a machine's CPUs that train without a GPU; the others make views.
TRAINING_SHARE = 0.75
# A worker gets at least this share of a core when a small machine is shared out.
MIN_CPUS_PER_WORKER = 0.25


@dataclass(frozen=True)
class Resources:
    """What one training worker takes. Torch gets a thread for each CPU."""

    cpus: float
    gpus: float

    def as_dict(self) -> dict[str, float]:
        """Ray's form; both keys always, for Ray's default leaves out the CPU when there is a GPU."""
        return {"CPU": self.cpus, "GPU": self.gpus}


def connect(
    address: str | None, *, verbose: bool, python_path: Sequence[str] = (), actor_pool: bool = False
) -> None:
    """Joins the cluster at `address` (or RAY_ADDRESS), else starts Ray here. Raises UserError if it cannot.

    What is started here listens on loopback alone, so that nobody else's machine can reach it; except for torch, whose
    store for the workers to find each other listens everywhere while a run trains, and offers no choice.
    python_path: folders of the user's own modules, for the workers to import them from. actor_pool: this driver will
    run actor pools of Ray Data, of whose arguments Ray's core itself complains on stderr at each actor's start.
    """
    local_cluster.set_environment()
    # Ray would have SIGTERM end this process at once.
    ray._private.utils.set_sigterm_handler = lambda handler: None
    if not verbose:
        os.environ.setdefault("RAY_LOG_TO_DRIVER_EVENT_LEVEL", "FATAL")
    address = local_cluster.wanted(address)
    if address:
        _check_reachable(address)
        # With an explicit address Ray takes a token or not by this alone: a wrong guess is refused after minutes, or by
        # the cluster's own calls back to us, which look as if our actors had died.
        if "RAY_AUTH_MODE" not in os.environ and _wants_token(address):
            os.environ["RAY_AUTH_MODE"] = "token"
    quiet: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
        "configure_logging": True,
    }
    runtime_env: dict[str, Any] = {}
    if address:
        runtime_env["worker_process_setup_hook"] = f"{__name__}.{tell_address.__name__}"
    own = None if address else local_cluster.started(python_path, verbose=verbose)
    if own:
        # Or Ray would look for it at the machine's address in its network. Ray reads the variable when it is imported.
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    ray._raylet.Config.initialize("")  # reads RAY_AUTH_MODE again, which may just have been set
    path = local_cluster.with_own(python_path)
    if path and (own is None or own.python_path != path):
        runtime_env["env_vars"] = {"PYTHONPATH": path}
    with warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
        try:
            with _mute_core(actor_pool and not verbose):
                ray.init(own.address() if own else address, runtime_env=runtime_env or None, **quiet)
        except (ConnectionError, ray.exceptions.RayError, RuntimeError, ValueError) as error:
            where = f"the Ray cluster at {address}" if address else "Ray on this machine"
            raise UserError(f"address: cannot reach {where}: {first_line(error)}") from error
    restore_sigterm()
    if own and actor_pool:
        from ssl_ray.data.stream import without_helpers

        without_helpers()
    if not verbose:
        for name in ("ray", "ray.train", "ray.data", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # What the cluster has to say of a node that died, 30 lines of it, Ray prints on our stdout, where results go.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None


def restore_sigterm() -> None:
    """Puts this process's own answer to SIGTERM back, over that of Ray's core, which prints its stack and aborts."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


def tell_address() -> None:
    """Called by Ray in each process of the cluster that works for us, before it does: tells it which cluster that is.

    Ray's own helpers ask the environment, such as what Ray Train leaves behind to free the workers of a killed
    controller: not told, they search the machine, and give up where it has two clusters.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


@contextmanager
def _mute_core(wanted: bool) -> Iterator[None]:
    """Around Ray's start: its core in this process logs nothing but what is fatal, unless the user has said a level.

    The core reads the level from the environment, and says so on the process's stderr: that goes nowhere meanwhile.
    """
    name = "RAY_BACKEND_LOG_LEVEL"
    if not wanted or name in os.environ:
        yield
        return
    os.environ[name] = "fatal"
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        del os.environ[name]


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes, and say so in a dozen lines."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return  # "auto", or nothing that Ray understands either: it answers at once
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise UserError(
            f"address: nobody answers at {address} ({error}); start a cluster there (`ray start --head`), or leave "
            "--address and RAY_ADDRESS out to use this machine"
        ) from error


def _wants_token(address: str) -> bool:
    """Whether the cluster refuses a call without a token; where that cannot be asked, whether we have one."""
    import grpc  # type: ignore[import-untyped]

    if address.startswith("ray://") or not _HOST_PORT.fullmatch(address):
        return has_token()
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_CHECK_ALIVE)(b"", timeout=CONNECT_TIMEOUT_S)
        except grpc.RpcError as error:
            refused = error.code() == grpc.StatusCode.UNAUTHENTICATED
            if refused and not has_token():
                raise UserError(
                    f"address: the cluster at {address} wants a token; put its token into ~/.ray/auth_token or "
                    "RAY_AUTH_TOKEN"
                ) from error
            return refused or has_token()
    return False


def alive_nodes() -> list[dict[str, float]]:
    """What each node of the connected cluster has in all: "CPU", "GPU", ... One without CPUs has no place for work."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def fit_workers(
    workers: int,
    cpus_per_worker: float | None,
    gpus_per_worker: float | None,
    say: Callable[[str], None] = lambda _: None,
) -> Resources:
    """Decides what each worker takes, and refuses what the cluster cannot serve; see `fit`.

    A cluster with an autoscaler may be larger than the nodes that run now: what it can become decides, `say` is told
    that workers wait, and here they do. Raises UserError.
    """
    nodes = alive_nodes()
    try:
        return fit(workers, cpus_per_worker, gpus_per_worker, nodes)
    except UserError:
        later = growth.most_nodes()
        if later:
            resources = fit(workers, cpus_per_worker, gpus_per_worker, later, "the cluster grows to")
        else:
            resources = of_nodes_to_come(cpus_per_worker, gpus_per_worker, nodes)
        waiting = workers - place(workers, resources, nodes)[0]
        wait = f"{waiting} workers of {resources.cpus:g} CPUs and {resources.gpus:g} GPUs wait for nodes"
        said = f"the cluster grows: {wait if waiting else 'the data waits for a node'}"
        if later:
            say(said)
        elif not growth.grow([resources.as_dict()] * workers + [{"CPU": 1.0}], lambda: say(said)):
            raise
        return resources


def of_nodes_to_come(
    cpus_per_worker: float | None, gpus_per_worker: float | None, nodes: list[dict[str, float]]
) -> Resources:
    """What each worker asks of an autoscaler, of whose nodes nothing is known: a CPU, and a GPU if these have any."""
    gpus = any(node.get("GPU") for node in nodes) if gpus_per_worker is None else gpus_per_worker
    return Resources(1.0 if cpus_per_worker is None else cpus_per_worker, float(gpus))


def fit(
    workers: int,
    cpus_per_worker: float | None,
    gpus_per_worker: float | None,
    nodes: list[dict[str, float]],
    has: str = "the cluster has",
) -> Resources:
    """What each worker takes of these nodes. Raises UserError for what they cannot serve.

    Ray Data gets only the CPUs that training leaves: at least one must be left whole on a node, any node, or the run
    would wait for ever without a word. By default a worker takes a GPU where there are any, and one CPU; less where
    there are few, and more where one machine without a GPU trains, for there the worker's CPUs are what computes.
    """
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    gpu = (1.0 if gpus else 0.0) if gpus_per_worker is None else gpus_per_worker
    has = f"{has} {cpus:g} CPUs and {gpus:g} GPUs on {len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    if gpu * workers > gpus:
        fewer = f"--workers {int(gpus / gpu)} or " if gpus >= gpu else ""
        raise UserError(
            f"workers: {workers} workers x {gpu:g} GPUs need {gpu * workers:g}, {has}; use {fewer}--gpus-per-worker 0"
        )
    if cpus_per_worker is None:
        shares = [step / 20 for step in range(20, int(20 * MIN_CPUS_PER_WORKER) - 1, -1)]
        if len(nodes) == 1 and not gpu:
            shares.insert(
                0, float(max(1, min(int((cpus - 1) / workers), int(cpus * TRAINING_SHARE / workers))))
            )
        for share in shares:
            if serves(workers, Resources(share, gpu), nodes):
                return Resources(share, gpu)
        least = Resources(MIN_CPUS_PER_WORKER, gpu)
        raise UserError(
            f"workers: {workers} workers need {workers * MIN_CPUS_PER_WORKER:g} CPUs at the least and one more for "
            f"the data, {has}; {_fewer(workers, least, nodes)}a larger cluster (--address)"
        )
    resources = Resources(cpus_per_worker, gpu)
    if cpus_per_worker * workers > cpus - 1:
        raise UserError(
            f"workers: {workers} workers x {cpus_per_worker:g} CPUs need {cpus_per_worker * workers:g} and the data "
            f"one more, {has}; {_fewer(workers, resources, nodes)}a smaller --cpus-per-worker"
        )
    placed, _ = place(workers, resources, nodes)
    if placed < workers:
        raise UserError(
            f"workers: only {placed} of {workers} workers of {cpus_per_worker:g} CPUs and {gpu:g} GPUs fit "
            f"on single nodes, {has}; {_fewer(workers, resources, nodes)}smaller workers"
        )
    if not serves(workers, resources, nodes):
        raise UserError(
            f"workers: {workers} workers of {cpus_per_worker:g} CPUs leave no node a whole CPU for the data, {has}; "
            f"{_fewer(workers, resources, nodes)}a smaller --cpus-per-worker"
        )
    return resources


def serves(workers: int, resources: Resources, nodes: list[dict[str, float]]) -> bool:
    """Whether so many workers find room, and leave a whole CPU for the data."""
    placed, left = place(workers, resources, nodes)
    return placed == workers and max(left, default=0.0) >= 1 - 1e-9


def _fewer(workers: int, resources: Resources, nodes: list[dict[str, float]]) -> str:
    """Advice: how many workers would do; nothing where none would."""
    most = next((n for n in range(workers - 1, 0, -1) if serves(n, resources, nodes)), 0)
    return f"use --workers {most}{' or fewer' if most > 1 else ''}, or " if most else "use "


def place(workers: int, resources: Resources, nodes: list[dict[str, float]]) -> tuple[int, list[float]]:
    """Workers that fit when nodes are filled one by one, and the CPUs then left on each node."""
    placed, left = 0, []
    for node in sorted(nodes, key=lambda node: node.get("CPU", 0.0), reverse=True):
        room = [node.get(name, 0.0) / need for name, need in resources.as_dict().items() if need]
        here = min(workers - placed, int(min(room, default=float(workers)) + 1e-9))
        placed += here
        left.append(node.get("CPU", 0.0) - here * resources.cpus)
    return placed, left


def job_id() -> str:
    """Ray's id of this driver's job."""
    return str(ray.get_runtime_context().get_job_id())


@contextmanager
def joined(address: str | None, **settings: Any) -> Iterator[None]:
    """`connect` before the body, and `disconnect` after it, however it ends."""
    try:
        connect(address, **settings)
        yield
    except ClusterLost:
        disconnect(lost=True)
        raise
    except BaseException:
        disconnect()
        raise
    else:
        disconnect()


def leave() -> None:
    """Begins `disconnect`, for who has more to do that takes time, and nothing with Ray."""
    with held():
        ray.shutdown()
        if (own := local_cluster.current()) is not None:
            own.begin_to_end()


def disconnect(*, lost: bool = False) -> None:
    """Leaves the cluster; one that `connect` started ends with this, to its last process.

    No thread of ours may be in a call to Ray. lost: there is nothing left to talk to.
    """
    with held():
        if not lost:
            ray.shutdown()
        local_cluster.end()
