"""The driver of a run: stream, trainer, what they have to say, result."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from ssl_ray.console import Console
from ssl_ray.data.plan import Plan
from ssl_ray.data.source import Dataset
from ssl_ray.data.stream import start_dealer
from ssl_ray.errors import ClusterLost, StoreError, UserError
from ssl_ray.filesystems import open_uri
from ssl_ray.recipe import Recipe
from ssl_ray.tracking import AnyTracker
from ssl_ray.training import local_cluster
from ssl_ray.training.cluster import Resources
from ssl_ray.training.control import Control
from ssl_ray.training.elastic import FittingGroup, FixedGroup, first_size
from ssl_ray.training.events import Fatal
from ssl_ray.training.failures import Failures, cause
from ssl_ray.training.folder import RunFolder
from ssl_ray.training.loop import Job, stream_config
from ssl_ray.training.process_group import ProcessGroup
from ssl_ray.training.ray_context import train_loop
from ssl_ray.training.result import RunResult
from ssl_ray.training.teller import Teller
from ssl_ray.training.trainer import Trainer, Training, ready
from ssl_ray.training.watchdog import silence
from ssl_ray.workers import Workers

# A worker that dies (a node lost, out of memory) is restarted this often, from the last checkpoint.
MAX_FAILURES = 3
# A lost peer should end a collective in minutes, not in torch's half hour.
COLLECTIVE_TIMEOUT_S = 600
# How often an elastic group looks whether the cluster has grown; each resize costs the workers' start.
RESIZE_S = 30.0
POLL_S = 0.2
ANSWER_S, ANSWER_POLL_S = 5.0, 0.01


@dataclass(frozen=True)
class RunHandle:
    """A run that has begun on the cluster: its processes start, its stream fills."""

    job: Job
    training: Training

    @contextmanager
    def ended(self, console: Console | None) -> Iterator[None]:
        """After the body, however that ends, nothing of the run is at work. console: told of an error first of all."""
        try:
            yield
        except ClusterLost as error:
            if console is not None:
                console.fail(error)
            raise
        except BaseException as error:
            if console is not None and isinstance(error, UserError | StoreError):
                console.fail(error)  # what comes now takes seconds
            self.training.end()
            raise
        self.training.end()


def begin(
    recipe: Recipe,
    dataset: Dataset,
    folder: RunFolder,
    *,
    workers: Workers,
    resources: Resources,
    verbose: bool = False,
    init_from: str | None = None,
    ahead: bool = True,
    alone: bool = False,
) -> RunHandle:
    """Begins a resolved recipe's training on a connected cluster, from the folder's last checkpoint if there is one.

    Without one it begins with `init_from`, another run's checkpoint, or at step 0. Waits for nothing: the workers
    start, and what they have to say is kept for `follow`. ahead: whether views are made meanwhile. alone: whether
    nothing else is at work on a cluster of the command's own: then an evaluation, while which no views are made, may
    have all of its CPUs.
    """
    plan = Plan(dataset.train.info.num_samples, recipe.training.global_batch_size, recipe.training.seed)
    total_steps = plan.total_steps(recipe.training.epochs)
    stop_step = min(total_steps, recipe.training.max_steps or total_steps)
    # Else rank 0 learns from a checkpoint where to begin. Read here: once training has begun, nothing may fail.
    from_start = folder.latest_checkpoint() is None and init_from is None
    dealer = start_dealer(
        stream_config(recipe, dataset, plan, stop_step),
        cpus_per_worker=resources.cpus,
        alone=local_cluster.here(),
    )
    size = first_size(workers.sizes(recipe), resources)
    threads = None
    if alone and local_cluster.here() and not resources.gpus:
        threads = max(1, int(ray.cluster_resources()["CPU"] / size))
    job = Job(recipe, dataset, plan, total_steps, stop_step, dealer, init_from, threads)
    training: Training = _trainer(job, folder, workers, resources, verbose).fit()
    if ahead and from_start:
        dealer.start_early.remote(0, size)
    return RunHandle(job, training)


def follow(
    run: RunHandle,
    folder: RunFolder,
    *,
    tracker: AnyTracker,
    console: Console,
    control: Control | None = None,
    on_first_step: Callable[[], None] = lambda: None,
) -> RunResult:
    """Shows a run's progress until it has ended. tracker: takes its metrics.

    One Ctrl-C ends the run with a checkpoint at its next look, a second one at once. Raises UserError when the run
    cannot go on for a reason that starting it again would not mend.
    """
    job, training = run.job, run.training
    result = RunResult("finished")
    feed = _Feed(job.dealer, silence(job.recipe.training.hang_minutes))
    with console.progress(job.stop_step, job.recipe.name) as progress:
        teller = Teller(result, tracker, folder, console, progress, control, on_first_step)
        while True:
            try:
                for event in feed.events(training):
                    if control is not None and control.stop.is_set() and result.status == "finished":
                        result.status = "stopped"
                        job.dealer.request_stop.remote()
                    if isinstance(event, Fatal):
                        raise UserError(event.message)
                    teller.tell(event)
                break
            except KeyboardInterrupt:
                if result.status == "stopped":
                    result.status = "interrupted"
                    break
                result.status = "stopped"
                progress.note("stopping at the next look, with a checkpoint; Ctrl-C again stops at once")
                job.dealer.request_stop.remote()
    if result.status != "interrupted":
        result.summary = _outcome(training, folder)
        if result.summary.pop("collapsed"):
            result.status = "collapsed"
        if result.summary["steps"] == job.stop_step:
            result.status = "finished"
    result.checkpoint = folder.latest_checkpoint()
    result.summary["broken_images"] = result.broken
    return result


def _trainer(job: Job, folder: RunFolder, workers: Workers, resources: Resources, verbose: bool) -> Trainer:
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
        "torch_config": ProcessGroup("nccl" if resources.gpus else "gloo", COLLECTIVE_TIMEOUT_S),
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
    policy: Any = None
    if len(sizes) > 1:
        policy = FittingGroup(scaling, sizes, resources, job.dealer)
    elif local_cluster.here():
        policy = FixedGroup(scaling)
    # In the name of a worker that cannot speak for itself: see `Watchdog`.
    environment = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(silence(job.recipe.training.hang_minutes))}
    # Not as the loop's configuration: that the controller would unpickle, and import all that a job needs.
    return Trainer(partial(train_loop, job), policy=policy, environment=environment, **settings)


def _outcome(training: Training, folder: RunFolder) -> dict[str, Any]:
    """What rank 0 returned. A run that failed too often ends in a line; its tracebacks are the error's cause."""
    try:
        result = training.result()
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"Ray Train's controller is gone ({cause(error)}); all up to the last checkpoint is kept: continue with "
            f"`{folder.command}`"
        ) from error
    except ray.train.TrainingFailedError as error:
        again = "" if isinstance(error, ray.train.ControllerError) else f", {MAX_FAILURES} restarts included"
        raise UserError(
            f"training failed{again}: {cause(error)}; all of it: {folder.error_file}; once that is mended, continue "
            f"with `{folder.command}`"
        ) from error
    summary: dict[str, Any] = result.return_value or {}
    return summary


class _Feed:
    """What ranks, data tasks and the controller have to say to the driver; the dealer keeps it until it is fetched.

    patience: seconds after which a dealer that does not answer is killed; Ray starts it again.
    """

    def __init__(self, dealer: Any, patience: float) -> None:
        self._dealer, self._patience = dealer, patience
        self._silent = 0.0
        self._asked: Any = None
        self._news: deque[Any] = deque()  # outlives a Ctrl-C, which may come between two events

    def events(self, training: Training) -> Iterator[Any]:
        """Until the training has ended and all is read; None when a while brought nothing."""
        while True:
            while self._news:
                yield self._news.popleft()
            running = training.running
            self._fetch(POLL_S if running else 0.0)
            if self._news:
                continue
            if not running:
                return
            yield None

    def _fetch(self, wait_s: float) -> None:
        """Waits so long for news, and longer for the dealer, but not for ever: it may hang, and answer later."""
        if self._asked is None:
            self._asked = self._dealer.take_news.remote(wait_s)
        deadline = time.monotonic() + ANSWER_S
        while not (answered := ready(self._asked)) and time.monotonic() < deadline:
            time.sleep(ANSWER_POLL_S)
        if answered:
            with suppress(ray.exceptions.RayActorError):  # it died and is being started again
                self._news.extend(ray.get(self._asked))
            self._asked, self._silent = None, 0.0
            return
        self._silent += ANSWER_S
        if self._silent > self._patience:
            self._silent = 0.0
            self._news.append(
                "the process that deals the data did not answer within training.hang_minutes; it is started again"
            )
            ray.kill(self._dealer, no_restart=False)
