"""The training loop: what each Ray Train worker runs, top to bottom."""

import inspect
import logging
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device, prepare_model
from torch import nn

from ssl_ray import distributed
from ssl_ray.data.batches import Batches
from ssl_ray.data.pipeline import ViewPipeline
from ssl_ray.data.plan import Plan
from ssl_ray.data.source import Dataset
from ssl_ray.errors import UserError
from ssl_ray.evaluation.alarm import collapses
from ssl_ray.evaluation.classifier import ClassifierEvaluation
from ssl_ray.evaluation.extract import TrainingSet
from ssl_ray.evaluation.online import OnlineEvaluation
from ssl_ray.filesystems import open_uri, upload
from ssl_ray.models.base import BaseModel, Progress
from ssl_ray.models.sync_batch_norm import synchronize_batch_norm
from ssl_ray.recipe import Recipe
from ssl_ray.tracking import TrackingTarget
from ssl_ray.training import checkpoint
from ssl_ray.training.optim import build_optimizer, set_lr
from ssl_ray.training.reporter import Reporter
from ssl_ray.training.schedules import learning_rate
from ssl_ray.training.step import begin_epoch, step_seed, take_step

# Buffers are queues, banks and BN statistics: every rank writes the same rows itself, so none is sent at each forward.
# The argument has another name in older releases of torch.
_SYNC_BUFFERS = "forward_sync_buffers"
DDP = {
    _SYNC_BUFFERS
    if _SYNC_BUFFERS in inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    else "broadcast_buffers": False,
    "gradient_as_bucket_view": True,
}
# Up to this side raw pixels are a fair rival in kNN: their accuracy is shown as a baseline.
SMALL_IMAGE = 64


@dataclass(frozen=True)
class Job:
    """All a worker needs to know.

    recipe: resolved. total_steps: what schedules run over; stop_step: where the run ends, the same unless
    max_steps says otherwise. dealer: handle of the stream's actor. init_from: another run's checkpoint (path or URI),
    to begin with where this run has none of its own.
    """

    recipe: Recipe
    dataset: Dataset
    plan: Plan
    total_steps: int
    stop_step: int
    dealer: Any
    tracking: TrackingTarget | None
    init_from: str | None = None


@dataclass(frozen=True)
class Fatal:
    """Event for the driver: the run cannot go on, and starting it again would not help."""

    message: str


def train_loop(config: dict[str, Job]) -> dict[str, Any]:
    """What Ray Train calls: `train`, with the user's errors told to the driver rather than retried."""
    job = config["job"]
    try:
        return train(job)
    except UserError as error:
        ray.get(job.dealer.tell.remote(Fatal(str(error))))
        raise


def train(job: Job) -> dict[str, Any]:
    """Trains for the job's steps, from the last checkpoint if there is one. Returns the summary of the run."""
    _quiet_ray_train()
    recipe, training, optimization = job.recipe, job.recipe.training, job.recipe.optimization
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = get_device()
    assert optimization.lr is not None, "the driver resolves recipes"

    torch.manual_seed(training.seed)  # every rank starts from the same weights
    algorithm: BaseModel = recipe.algorithm.build().to(device)
    if training.channels_last:
        algorithm.to(memory_format=torch.channels_last)
    if training.sync_bn and world_size > 1:
        algorithm = synchronize_batch_norm(algorithm, device)
    optimizer = build_optimizer(optimization.optimizer, algorithm.param_groups(), optimization.lr)

    step = 0
    evaluations: list[dict[str, float]] = []
    latest = ray.train.get_checkpoint()
    if latest is None and job.init_from is not None:
        filesystem, path = open_uri(job.init_from)
        latest = ray.train.Checkpoint(path, filesystem)
    if latest is not None:
        with latest.as_directory() as directory:
            step, evaluations = checkpoint.restore(directory, algorithm, optimizer)
    _, stop = distributed.agree(False, rank == 0 and ray.get(job.dealer.stop_requested.remote()))
    if stop:  # before a first step: there is nothing to save
        return {"steps": step, "evaluations": evaluations, "images_per_second": 0.0}

    if training.compile:
        algorithm.compile()
    model = prepare_model(algorithm, parallel_strategy_kwargs=DDP)

    if rank == 0:
        ray.get(job.dealer.start.remote(step, world_size))
    distributed.barrier()
    pipeline: ViewPipeline = recipe.views.build()
    batches = Batches(
        job.dealer,
        first_step=step,
        rank=rank,
        batch_size=job.plan.global_batch_size // world_size,
        views=len(pipeline.sizes),
        device=device,
        channels_last=training.channels_last,
    )
    reporter = Reporter(
        job.dealer,
        job.tracking,
        rank=rank,
        device=device,
        first_step=step,
        stop_step=job.stop_step,
        images_per_step=job.plan.global_batch_size,
    )
    low_precision = torch.bfloat16 if training.precision == "bf16" else None
    evaluate = (ClassifierEvaluation if algorithm.needs_labels else OnlineEvaluation)(
        job.dataset.train,
        job.dataset.val,
        size=pipeline.eval_size,
        monitors=recipe.evaluation.monitors,
        k=recipe.evaluation.k,
        temperature=recipe.evaluation.temperature,
        max_samples=recipe.evaluation.max_samples,
        views=pipeline,
        view_images=recipe.evaluation.view_images,
        lidar_views=recipe.evaluation.lidar_views,
        device=device,
        autocast=low_precision,
    )
    extract = TrainingSet(
        job.dataset.train, algorithm, size=pipeline.eval_size, device=device, autocast=low_precision
    )
    collapsed = False
    skipped = 0  # steps in a row without a finite gradient
    last_save = time.monotonic()

    def judge(step: int) -> bool:
        """Online evaluation; every rank takes part. Returns whether it is a reason to stop, the same on all ranks."""
        started = time.perf_counter()
        with reporter.paused():
            distributed.average_batch_norm_(algorithm)
            result = evaluate.run(algorithm, trained=step > 0)
            if (
                step == 0
                and pipeline.eval_size <= SMALL_IMAGE
                and (top1 := evaluate.raw_pixel_knn()) is not None
            ):
                result["baseline/raw_pixels_knn_top1"] = top1
        evaluations.append({"epoch": round(step / job.plan.steps_per_epoch, 2), "step": step, **result})
        alarms = collapses(evaluations)
        reporter.evaluation(
            evaluations[-1], alarms, evaluate.broken | extract.broken, time.perf_counter() - started
        )
        return distributed.agree(bool(alarms) and recipe.evaluation.on_collapse == "stop")[0]

    if step == 0 and recipe.evaluation.every_epochs:
        judge(step)

    while step < job.stop_step:
        progress = Progress(step, job.total_steps, job.plan.epoch(step), training.epochs)
        torch.manual_seed(step_seed(training.seed, step, rank))
        if step % job.plan.steps_per_epoch == 0:
            with reporter.paused():
                begin_epoch(algorithm, optimizer, progress, extract)
        set_lr(optimizer, lr := learning_rate(optimization, progress), peak_lr=optimization.lr)

        batch = next(batches)
        metrics, taken = take_step(
            algorithm,
            model,
            optimizer,
            batch.views,
            batch.samples,
            progress,
            accumulate=training.accumulate,
            precision=training.precision,
            clip_grad_norm=optimization.clip_grad_norm,
        )
        skipped = 0 if taken else skipped + 1
        if not taken:
            reporter.send(
                f"step {step + 1}: the gradient is not finite (loss {metrics['loss']:.4g}); step skipped"
            )
        if skipped >= training.max_nonfinite_steps:
            raise UserError(
                f"the gradient is not finite since step {step + 2 - skipped} ({skipped} steps in a row); lower "
                "optimization.base_lr, lengthen optimization.warmup_epochs or set optimization.clip_grad_norm, "
                "and start again; the last checkpoint is from before"
            )
        step += 1

        at_end = step == job.stop_step
        save = training.checkpoint_steps is not None and step % training.checkpoint_steps == 0
        stop = collapsed = False
        if step % training.log_steps == 0 or at_end:
            reporter.step(progress, metrics, lr, batches.waited)
            due = training.checkpoint_minutes is not None and (
                time.monotonic() - last_save > 60 * training.checkpoint_minutes
            )
            # Rank 0's clock and rank 0's news decide for all: every rank has to report a checkpoint together.
            stop = rank == 0 and ray.get(job.dealer.stop_requested.remote())
            due, stop = distributed.agree(due, stop)
            save = save or due
        epoch_ended = step % job.plan.steps_per_epoch == 0
        every = recipe.evaluation.every_epochs
        if every and (at_end or (epoch_ended and (progress.epoch + 1) % every == 0)):
            collapsed = judge(step)
        if save or at_end or stop or collapsed:
            with reporter.paused():
                distributed.average_batch_norm_(algorithm)
                reporter.tracker.flush()
                save_checkpoint(
                    rank,
                    algorithm=algorithm,
                    optimizer=optimizer,
                    recipe=recipe,
                    next_step=step,
                    evaluations=evaluations,
                )
            last_save = time.monotonic()
        if stop or collapsed:
            break

    reporter.close(step, ray.get(job.dealer.count_broken.remote()))
    return {
        "steps": step,
        "evaluations": evaluations,
        "images_per_second": reporter.images_per_second,
        "alarms": [str(alarm) for alarm in collapses(evaluations)],
        "collapsed": collapsed,
    }


def save_checkpoint(rank: int, **contents: Any) -> None:
    """Rank 0 writes; all ranks report, for Ray Train's `report` is a barrier."""
    metrics = {"step": contents["next_step"]}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as directory:
        checkpoint.save(directory, **contents)
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_upload_fn=_upload_checkpoint,
        )


def _upload_checkpoint(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Copies a checkpoint into the run's folder. Ray Train's own way would list one whose upload had failed."""
    storage = ray.train.get_context().get_storage()
    path = f"{storage.experiment_fs_path}/{name}"
    upload(checkpoint.path, storage.storage_filesystem, path)
    return ray.train.Checkpoint(path, storage.storage_filesystem)


def _quiet_ray_train() -> None:
    """Ray Train logs each reported result at INFO, under a logger named after its file's path."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    import ray.train.v2._internal.execution.context as train_context

    train_context.logger.setLevel(logging.WARNING)
