"""The driver of a run: data set, cluster, MLflow run, stream, trainer, result."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from ssl_ray.tracking import TrackingTarget
from ssl_ray.training import local_cluster
from ssl_ray.training.cluster import Resources
from ssl_ray.training.control import Control
from ssl_ray.training.elastic import FittingGroup, FixedGroup
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
    dealer = start_dealer(stream_config(recipe, dataset, plan, stop_step), alone=local_cluster.here())
    if folder.latest_checkpoint() is None and init_from is None:
        dealer.start_early.remote(0, workers)  # not waited for: it takes seconds
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
    while_it_starts: Callable[[], None] = lambda: None,
    on_first_step: Callable[[], None] = lambda: None,
) -> RunResult:
    """Trains a resolved recipe on a connected cluster, from the folder's last checkpoint if there is one.

    Without one it begins with `init_from`, another run's checkpoint, or at step 0. Shows progress while it runs. One
    Ctrl-C ends the run with a checkpoint at its next look, a second one at once. Raises UserError when the run cannot
    go on for a reason that starting it again would not mend. However it ends, nothing of it is at work afterwards.
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
    result = RunResult("finished")
    feed = _Feed(stream.dealer, silence(recipe.training.hang_minutes))
    training: Training = _trainer(job, folder, workers, resources, verbose).fit()
    try:
        while_it_starts()
        with console.progress(stream.stop_step, recipe.name) as progress:
            teller = Teller(result, folder, console, progress, control, on_first_step)
            while True:
                try:
                    for event in feed.events(training):
                        if control is not None and control.stop.is_set() and result.status == "finished":
                            result.status = "stopped"
                            stream.dealer.request_stop.remote()
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
                    stream.dealer.request_stop.remote()
        if result.status != "interrupted":
            result.summary = _outcome(training, folder)
            if result.summary.pop("collapsed"):
                result.status = "collapsed"
            if result.summary["steps"] == stream.stop_step:
                result.status = "finished"
    except (UserError, StoreError) as error:
        if control is None:  # a search tells of its trials itself
            console.fail(error)  # first of all: what comes now takes seconds
        if not isinstance(error, ClusterLost):
            training.end()
        raise
    except BaseException:
        training.end()
        raise
    training.end()
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
            self._fetch()
            if self._news:
                continue
            if not running:
                return
            yield None
            time.sleep(POLL_S)

    def _fetch(self) -> None:
        """Waits for the dealer, but not for long: it may hang. Its answer then comes later."""
        if self._asked is None:
            self._asked = self._dealer.take_news.remote()
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
