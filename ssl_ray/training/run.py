"""The driver of a run: data set, cluster, MLflow run, stream, `TorchTrainer`, result."""

import contextlib
import math
import queue
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from ssl_ray.console import Console, TrainProgress, TrainStatus
from ssl_ray.data.blocks import Broken, StreamConfig
from ssl_ray.data.plan import Plan
from ssl_ray.data.source import Dataset
from ssl_ray.data.stream import start_dealer
from ssl_ray.errors import UserError
from ssl_ray.filesystems import open_uri
from ssl_ray.recipe import Recipe
from ssl_ray.tracking import TrackingTarget
from ssl_ray.training.cluster import Resources
from ssl_ray.training.control import Control
from ssl_ray.training.elastic import ElasticTrainer, FittingGroup
from ssl_ray.training.events import Begun, Failed, Fatal, Hung
from ssl_ray.training.folder import RunFolder
from ssl_ray.training.loop import Job, train_loop
from ssl_ray.training.reporter import LeftOut
from ssl_ray.training.stops import sigterm_as_ctrl_c
from ssl_ray.workers import Workers

# A worker that dies (a node lost, out of memory) is restarted this often, from the last checkpoint.
MAX_FAILURES = 3
# A lost peer should end a collective in minutes, not in torch's half hour.
COLLECTIVE_TIMEOUT_S = 600
# How often an elastic group looks whether the cluster has grown; each resize costs the workers' start.
RESIZE_S = 30.0
POLL_S = 0.2
PATIENCE_S = 120


@dataclass
class RunResult:
    """How a run ended.

    status: "finished", "stopped" (asked to, with a checkpoint), "collapsed" (stopped for an alarm, with a checkpoint)
    or "interrupted" (at once). summary: what rank 0 returned: steps, evaluations, images_per_second, and alarms, a line
    for each collapse that the last evaluation shows. checkpoint: path or URI of the last one. history: what
    this session showed. broken: images that could not be read.
    """

    status: str
    summary: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    history: list[TrainStatus] = field(default_factory=list)
    broken: int = 0


@dataclass(frozen=True)
class Stream:
    """A stream that has begun. total_steps: what schedules run over; stop_step: where this run ends."""

    dealer: Any
    plan: Plan
    total_steps: int
    stop_step: int


def start_stream(
    recipe: Recipe, dataset: Dataset, folder: RunFolder, workers: int, init_from: str | None = None
) -> Stream:
    """Starts the dealer of a resolved recipe on a connected cluster.

    The pipe fills while MLflow opens and the workers start. A run that continues, its own checkpoint or another's
    (`init_from`), learns its step from there first.
    """
    plan = Plan(dataset.train.info.num_samples, recipe.training.global_batch_size, recipe.training.seed)
    total_steps = plan.total_steps(recipe.training.epochs)
    stop_step = min(total_steps, recipe.training.max_steps or total_steps)
    dealer = start_dealer(
        StreamConfig(
            dataset.train,
            recipe.views.build(),
            plan,
            total_steps=stop_step,
            max_broken=recipe.data.max_broken,
            with_labels=getattr(recipe.algorithm.target, "needs_labels", False),
        )
    )
    if folder.latest_checkpoint() is None and init_from is None:
        ray.get(dealer.start.remote(0, workers))
    return Stream(dealer, plan, total_steps, stop_step)


def run(
    recipe: Recipe,
    dataset: Dataset,
    stream: Stream,
    folder: RunFolder,
    *,
    workers: Workers,
    resources: Resources,
    tracking: TrackingTarget | None,
    console: Console,
    verbose: bool = False,
    control: Control | None = None,
    init_from: str | None = None,
    on_first_step: Callable[[], None] = lambda: None,
) -> RunResult:
    """Trains a resolved recipe on a connected cluster, from the folder's last checkpoint if there is one.

    Without one it begins with `init_from`, another run's checkpoint, or at step 0. Shows progress while it runs. One
    Ctrl-C or SIGTERM ends the run with a checkpoint at its next look, a second one at once. Raises UserError when the
    run cannot go on for a reason that starting it again would not mend.
    """
    job = Job(
        recipe,
        dataset,
        stream.plan,
        stream.total_steps,
        stream.stop_step,
        stream.dealer,
        tracking,
        init_from,
    )
    fit = _Background(_trainer(job, folder, workers, resources, verbose).fit)
    result = RunResult("finished")
    news: deque[Any] = deque()  # outlives a Ctrl-C, which may come between two events
    with sigterm_as_ctrl_c(), console.progress(stream.stop_step, recipe.name) as progress:
        teller = _Teller(result, folder, console, progress, control, on_first_step)
        while True:
            try:
                for event in _events(stream.dealer, fit, news):
                    if control is not None and control.stop.is_set() and result.status == "finished":
                        result.status = "stopped"
                        stream.dealer.request_stop.remote()
                    if isinstance(event, Fatal):
                        if control is not None:
                            stream.dealer.request_stop.remote()  # the restarted workers end at once
                            fit.wait()
                        raise UserError(event.message)
                    teller.tell(event)
                break
            except KeyboardInterrupt:
                if result.status == "stopped":
                    result.status = "interrupted"
                    break
                result.status = "stopped"
                progress.note("stopping at the next look, with a checkpoint; Ctrl-C again stops at once")
                stream.dealer.request_stop.remote()
    if result.status != "interrupted":
        result.summary = _outcome(fit, folder)
        if result.summary.pop("collapsed"):
            result.status = "collapsed"
        if result.summary["steps"] == stream.stop_step:
            result.status = "finished"
    result.checkpoint = folder.latest_checkpoint()
    result.summary["broken_images"] = result.broken
    return result


def _trainer(
    job: Job, folder: RunFolder, workers: Workers, resources: Resources, verbose: bool
) -> TorchTrainer:
    """Ray Train's side of a run."""
    sizes = workers.sizes(job.recipe)
    scaling = ScalingConfig(
        num_workers=sizes[0] if len(sizes) == 1 else (sizes[0], sizes[-1]),
        use_gpu=resources.gpus > 0,
        resources_per_worker=resources.as_dict(),
        elastic_resize_monitor_interval_s=RESIZE_S,
    )
    filesystem, path = open_uri(folder.storage)
    settings: dict[str, Any] = {
        "train_loop_config": {"job": job},
        "torch_config": TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
        "scaling_config": scaling,
        "run_config": RunConfig(
            name=folder.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=job.recipe.training.keep_checkpoints),
            logging_config=LoggingConfig(log_level="INFO" if verbose else "ERROR"),
            callbacks=[Failures(job.dealer)],
        ),
    }
    if len(sizes) == 1:
        return TorchTrainer(train_loop, **settings)
    return ElasticTrainer(train_loop, policy=FittingGroup(scaling, sizes, resources, job.dealer), **settings)


class Failures(UserCallback):  # type: ignore[misc]
    """In Ray Train's controller: passes on which workers ended, and why."""

    def __init__(self, dealer: Any) -> None:
        self.dealer = dealer

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train before it starts the group again, or gives up."""
        causes = {rank: _cause(error) for rank, error in worker_exceptions.items()}
        self.dealer.tell.remote(Failed(causes))


def _cause(error: Exception) -> str:
    """An error in one line; of what a worker raised, the line that says what."""
    error = getattr(error, "health_check_failure", error)  # Ray Train's word around it
    if isinstance(error, ray.exceptions.RayActorError):
        return "its node is gone" if "node was terminated" in str(error) else "its process is gone"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines or [type(error).__name__])[-1]


class _Teller:
    """Tells people what events say, and keeps what the end of the run needs of them."""

    def __init__(
        self,
        result: RunResult,
        folder: RunFolder,
        console: Console,
        progress: TrainProgress,
        control: Control | None,
        on_first_step: Callable[[], None],
    ) -> None:
        self.result, self.folder, self.console, self.progress = result, folder, console, progress
        self.control, self.on_first_step = control, on_first_step
        self.last_news = time.monotonic()
        self.world_size = 0
        self.named: set[str] = set()

    def tell(self, event: Any) -> None:
        """None is no event: a while without news."""
        if event is None:
            if time.monotonic() - self.last_news > PATIENCE_S:
                self.console.warn(
                    f"no news for {PATIENCE_S} s: the cluster may be busy with other work (`ray status`), or a batch "
                    "is slow; still waiting"
                )
                self.last_news = math.inf  # once for each silence
            return
        self.last_news = time.monotonic()
        if isinstance(event, TrainStatus):
            if not self.result.history:
                self.on_first_step()
            self.result.history.append(event)
            self.progress.update(event)
        elif isinstance(event, dict):
            self.progress.note(describe_evaluation(event))
            if self.control is not None:
                self.control.on_evaluation(event)
        elif isinstance(event, Broken | LeftOut):
            self._broken(event)
        elif isinstance(event, Begun):
            if self.world_size:
                several = "s" if event.world_size > 1 else ""
                self.progress.note(
                    f"training goes on from step {event.step} on {event.world_size} worker{several}"
                )
            self.world_size = event.world_size
        elif isinstance(event, Failed):
            for rank, cause in sorted(event.causes.items()):
                self.console.warn(f"worker {rank} failed: {cause}")
        elif isinstance(event, Hung):
            stacks = self.folder.keep(f"hung-worker-{event.rank}.txt", event.stacks.encode())
            self.console.warn(
                f"worker {event.rank} took more than {event.minutes:g} min for a step (training.hang_minutes) and is "
                f"started again; where it was: {stacks}"
            )
        else:
            self.console.warn(event)

    def _broken(self, event: Broken | LeftOut) -> None:
        """An image is named once, whoever met it first."""
        in_training = isinstance(event, Broken)
        self.result.broken += in_training
        if event.path not in self.named:
            self.named.add(event.path)
            done = "another sample took its place" if in_training else "left out of the evaluation"
            self.console.warn(f"{event.path}: {event.reason}; {done}")


def _outcome(fit: "_Background", folder: RunFolder) -> dict[str, Any]:
    """What rank 0 returned. A run that failed too often ends in a line, and its tracebacks in a file."""
    try:
        outcome = fit.outcome()
    except ray.train.TrainingFailedError as error:
        log = (folder.local or Path(tempfile.gettempdir())) / "error.txt"
        log.write_text(str(error))
        again = "" if isinstance(error, ray.train.ControllerError) else f", {MAX_FAILURES} restarts included"
        raise UserError(f"training failed{again}: {_cause(error)}; all of it: {log}") from error
    summary: dict[str, Any] = outcome.return_value or {}
    return summary


def describe_evaluation(result: dict[str, float]) -> str:
    """One line for an online evaluation."""
    parts = [f"epoch {result['epoch']:g}"]
    if "val/knn_top1" in result:
        parts.append(f"kNN top-1 {100 * result['val/knn_top1']:.1f} %")
    if "val/linear_top1" in result:
        parts.append(f"linear {100 * result['val/linear_top1']:.1f} %")
    if "val/finetune_top1" in result:
        parts.append(f"top-1 {100 * result['val/finetune_top1']:.1f} %")
    if "embedding/std" in result:
        parts.append(f"embedding std {result['embedding/std']:.4f}")
    if "embedding/rankme" in result:
        parts.append(f"rank {result['embedding/rankme']:.1f}")
    return ": ".join([parts[0], ", ".join(parts[1:]) or "evaluated"])


class _Background:
    """A call in a thread. Signals reach only the main thread, which stays free to answer Ctrl-C."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._outcome: queue.Queue[tuple[bool, Any]] = queue.Queue()
        self.thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self.thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._outcome.put((True, call()))
        except BaseException as error:
            self._outcome.put((False, error))

    @property
    def running(self) -> bool:
        return self._outcome.empty()

    def wait(self) -> None:
        """Until the call has ended, however."""
        self.thread.join()

    def outcome(self) -> Any:
        succeeded, value = self._outcome.get()
        if not succeeded:
            raise value
        return value


def _events(dealer: Any, call: _Background, news: deque[Any]) -> Iterator[Any]:
    """What ranks and data tasks report, until the call has ended and all is read; None when a while brought nothing.

    news: what is fetched and not yet handed out.
    """
    while True:
        while news:
            yield news.popleft()
        running = call.running
        with contextlib.suppress(ray.exceptions.RayActorError):  # it died and is being started again
            news.extend(ray.get(dealer.take_news.remote()))
        if news:
            continue
        if not running:
            return
        yield None
        time.sleep(POLL_S)
