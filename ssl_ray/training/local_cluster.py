"""A Ray cluster of one command's own, on this machine: started beside the command's imports, ended with it.

`ray.init` would start the same processes one after another and inside the command, whose imports, which take as long,
would wait for it. So a small process of its own starts them, and holds them: it ends them when its standard input ends,
which is when the command says so or is no more, however it ended.

What serves only people who watch a cluster, or an autoscaler, is not started: the dashboard, of which Ray starts a part
even where none is wanted, the monitor, and, unless its output is shown, what reads the logs of all processes.
"""

import ctypes
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from ssl_ray.training.token import make_token

if TYPE_CHECKING:
    import psutil

# In the environment of all processes of such a cluster, and of the command that has connected to it.
MARK = "SSL_RAY_LOCAL_CLUSTER"
START_S = 120.0
# Processes of a cluster that has ended go by themselves; what is stopped or hangs does not.
END_S = 10.0
POLL_S = 0.5
REGISTERED_POLL_S = 0.02
PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>
# Read by Ray Train in the driver and handed on, or by Ray in all processes. Reports are taken once per poll: 2 s by
# default, which a short run would feel.
_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Of its processes alone: nodes neither come nor go, and of actors that wait in an async method Ray would warn.
_OF_PROCESSES = {
    MARK: "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}
# Such a cluster takes calls on 127.0.0.1 only, Ray's default on macOS and Windows, its processes ask for a token, and
# like one that `ray.init` starts it tells nobody that it is used.
_ON_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def set_environment() -> None:
    """What Ray reads from the environment of a process that drives a run; before it imports `ray.train`."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def wanted(address: str | None) -> str | None:
    """The cluster to join, by option or RAY_ADDRESS; None where it is to be one of the command's own."""
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address  # Ray's word for it


def here() -> bool:
    """Whether this process works on such a cluster: a single node, with neither a dashboard nor an autoscaler."""
    return MARK in os.environ


class LocalCluster:
    """The cluster, in the command's hands. It has begun to start when this returns.

    python_path: what its processes get as PYTHONPATH. verbose: whether their output is shown.
    """

    def __init__(self, python_path: str, *, verbose: bool) -> None:
        set_environment()
        for name, value in _ON_LOOPBACK.items():
            os.environ.setdefault(name, value)
        make_token()
        self.python_path = python_path
        self.pids: dict[str, int] = {}
        self.gone: set[str] = set()
        self._address = ""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (read when the process has failed)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps({"include_log_monitor": verbose})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | _OF_PROCESSES | ({"PYTHONPATH": python_path} if python_path else {}),
            bufsize=0,  # lines are waited for with `select`, which does not see what lies in a buffer
            start_new_session=True,  # Ctrl-C in a terminal goes to the command, which ends in order
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._out = self._process.stdin, self._process.stdout

    def address(self) -> str:
        """Waits until drivers may connect. Raises RuntimeError where it cannot be started."""
        if not self._address:
            said = self._hear(START_S)
            if said is None:
                self._process.kill()
                self._process.wait()
                self._errors.seek(0)
                lines = self._errors.read().decode(errors="replace").strip().splitlines()
                raise RuntimeError(lines[-1] if lines else f"it did not start within {START_S:g} s")
            self._address, self.pids = said["address"], said["pids"]
            os.environ[MARK] = "1"
        return self._address

    def lives(self, kind: str) -> bool:
        """Whether a process is there: "raylet", "gcs_server". One that is being ended is not missed."""
        if self._stdin.closed:
            return True
        while said := self._hear(0):
            self.gone.add(said["gone"])
        return kind not in self.gone and self._process.poll() is None

    def begin_to_end(self) -> None:
        """Nobody here is connected to it any more: it ends while other things are done."""
        self._stdin.close()
        os.environ.pop(MARK, None)

    def end(self) -> None:
        """Ends it to its last process."""
        self.begin_to_end()
        try:
            self._process.wait(3 * END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        self._out.close()

    def _hear(self, seconds: float) -> dict[str, Any] | None:
        """The next line that the holding process says, None where it says nothing in time or is gone."""
        line = self._out.readline() if select.select([self._out], [], [], seconds)[0] else b""
        said: dict[str, Any] | None = json.loads(line) if line else None
        return said


_cluster: LocalCluster | None = None


def begin(address: str | None, *, python_path: Sequence[str] = (), verbose: bool) -> None:
    """For a command's first moment: its own cluster starts while it imports, unless it will join another.

    python_path: folders of the user's own modules. `end` has to follow, whatever becomes of the command.
    """
    if wanted(address) is None:
        started(python_path, verbose=verbose)


def own_modules(recipe: str | None) -> list[str]:
    """Folders of the user's own modules: where the command runs, and where the recipe's file is."""
    file = (recipe or "").partition(":")[0]
    return [os.getcwd(), *([os.path.dirname(os.path.abspath(file))] if file.endswith(".py") else [])]


def started(python_path: Sequence[str] = (), *, verbose: bool) -> LocalCluster:
    """The command's own cluster, which begins to start with the first call."""
    global _cluster
    if _cluster is None:
        _cluster = LocalCluster(with_own(python_path), verbose=verbose)
    return _cluster


def end() -> None:
    """Ends the command's own cluster, if it has one."""
    global _cluster
    if _cluster is not None:
        _cluster.end()
        _cluster = None


def current() -> LocalCluster | None:
    """The command's own cluster."""
    return _cluster


def with_own(python_path: Sequence[str]) -> str:
    """These folders, and what PYTHONPATH has, as PYTHONPATH; nothing where there are no such folders."""
    own = filter(None, [os.environ.get("PYTHONPATH")])
    return os.pathsep.join([*python_path, *own]) if python_path else ""


def main() -> None:
    """The process that holds the cluster: starts it, says where it is and what ends, and ends all with its input."""
    import ray._private.utils
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    adopt_orphans()
    begun, over = threading.Event(), threading.Event()
    threading.Thread(target=_watch_input, args=(begun, over), daemon=True).start()
    # Then this node's agent leaves out what serves the dashboard.
    ray._private.utils.get_dashboard_dependency_error = lambda: ImportError("there is no dashboard")

    class Head(Node):  # type: ignore[misc]
        def start_api_server(self, **_: Any) -> None:
            """There is none."""

        def start_raylet(self, *args: Any, **kwargs: Any) -> None:
            # For Ray's own helpers, which otherwise search the machine, and give up where it has two clusters.
            os.environ["RAY_ADDRESS"] = self.gcs_address
            super().start_raylet(*args, **kwargs)
            # Ray itself looks once a second. One that never registers is its affair: it says so.
            while (
                not self.get_gcs_client().get_all_node_info() and processes_of(self)["raylet"].poll() is None
            ):
                time.sleep(REGISTERED_POLL_S)

    ensure_token_if_auth_enabled({}, create_token_if_missing=True)
    node = Head(
        RayParams(include_dashboard=False, no_monitor=True, **json.loads(sys.argv[1])),
        head=True,
        shutdown_at_exit=False,
        spawn_reaper=True,
        ray_init_cluster=True,
    )
    processes = processes_of(node)
    pids = {kind: process.pid for kind, process in processes.items()}
    print(json.dumps({"address": node.gcs_address, "pids": pids}), flush=True)
    begun.set()
    while not over.wait(POLL_S):
        for kind in [kind for kind, process in processes.items() if process.poll() is not None]:
            del processes[kind]
            print(json.dumps({"gone": kind}), flush=True)
    import psutil  # which Ray brings

    started = psutil.Process().children(recursive=True)
    node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)
    end_processes(started)


def processes_of(node: Any) -> dict[str, "subprocess.Popen[bytes]"]:
    """Those that a node has started, by kind."""
    return {kind: info[0].process for kind, info in node.all_processes.items()}


def _watch_input(begun: threading.Event, over: threading.Event) -> None:
    """Thread: says when the command needs the cluster no more; before it has begun, what there is ends at once."""
    while os.read(0, 1):
        pass
    over.set()
    if not begun.is_set():
        end_processes([], patience=0.0)
        os._exit(0)


def adopt_orphans() -> None:
    """What becomes of processes whose parent dies, such as the workers of a lost raylet: they are this one's. Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_processes(known: "list[psutil.Process]", patience: float = END_S) -> None:
    """Waits for the end of these and of all that descend from this process, and ends what remains."""
    import psutil

    deadline = time.monotonic() + patience
    while left := [one for one in {*known, *psutil.Process().children(recursive=True)} if _lives(one)]:
        if time.monotonic() > deadline:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, patience)
            return
        time.sleep(POLL_S / 10)


def _lives(process: "psutil.Process") -> bool:
    import psutil

    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main()
