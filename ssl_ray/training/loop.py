"""The training loop: what each Ray Train worker runs, top to bottom."""

import inspect
import logging
import time
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode
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
from ssl_ray.filesystems import open_uri
from ssl_ray.models.base import BaseModel, Progress
from ssl_ray.models.sync_batch_norm import synchronize_batch_norm
from ssl_ray.recipe import Recipe
from ssl_ray.tracking import TrackingTarget
from ssl_ray.training import checkpoint
from ssl_ray.training.events import Begun, Fatal
from ssl_ray.training.lookout import Lookout
from ssl_ray.training.optim import build_optimizer, set_lr
from ssl_ray.training.reporter import Reporter
from ssl_ray.training.schedules import learning_rate
from ssl_ray.training.standstill import Standstill
from ssl_ray.training.step import begin_epoch, seed_generators, step_seed, take_step
from ssl_ray.training.watchdog import Watchdog
from ssl_ray.workers import accumulation

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


def train_loop(job: Job) -> dict[str, Any]:
    """What Ray Train calls: `train`, with the user's errors told to the driver rather than retried."""
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
    kept = checkpoints_of(job)  # they hold what has become of pretrained weights
    algorithm: BaseModel = (recipe.untrained if kept else recipe.algorithm).build().to(device)
    if training.channels_last:
        algorithm.to(memory_format=torch.channels_last)
    if training.sync_bn and world_size > 1:
        algorithm = synchronize_batch_norm(algorithm, device)
    optimizer = build_optimizer(optimization.optimizer, algorithm.param_groups(), optimization.lr)

    step, evaluations = restore_newest(kept, job, algorithm, optimizer)
    stop = rank == 0 and ray.get(job.dealer.look.remote(saved=False))[0]
    if distributed.agree(stop)[0]:  # before a first step: there is nothing to save
        return {"steps": step, "evaluations": evaluations, "images_per_second": 0.0, "collapsed": False}

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
    reporter.send(Begun(step, world_size))
    accumulate = accumulation(recipe, world_size)
    lookout = Lookout(job.dealer, rank, step, training.checkpoint_minutes)
    watchdog = Watchdog(job.dealer, rank, training.hang_minutes)
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
    standstill = Standstill()

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
        return bool(distributed.agree(bool(alarms) and recipe.evaluation.on_collapse == "stop")[0])

    if step == 0 and recipe.evaluation.every_epochs:
        judge(step)

    while step < job.stop_step:
        progress = Progress(step, job.total_steps, job.plan.epoch(step), training.epochs)
        seed_generators(step_seed(training.seed, step, rank), device)
        if step % job.plan.steps_per_epoch == 0:
            with reporter.paused():
                begin_epoch(algorithm, optimizer, progress, extract)
        set_lr(optimizer, lr := learning_rate(optimization, progress), peak_lr=optimization.lr)

        batch = next(batches)
        with watchdog.step():
            metrics, taken, zero = take_step(
                algorithm,
                model,
                optimizer,
                batch.views,
                batch.samples,
                progress,
                accumulate=accumulate,
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
        if warning := standstill(step, zero):
            reporter.send(warning)

        at_end = step == job.stop_step
        if step % training.log_steps == 0 or at_end:
            reporter.step(progress, metrics, lr, batches.waited)
        stop, save = lookout(step)
        save = save or (training.checkpoint_steps is not None and step % training.checkpoint_steps == 0)
        collapsed = False
        epoch_ended = step % job.plan.steps_per_epoch == 0
        every = recipe.evaluation.every_epochs
        if every and (at_end or (epoch_ended and (progress.epoch + 1) % every == 0)):
            collapsed = judge(step)
        if save or at_end or stop or collapsed:
            with reporter.paused():
                distributed.average_batch_norm_(algorithm)
                reporter.tracker.flush()
                failure = save_checkpoint(
                    rank,
                    algorithm=algorithm,
                    optimizer=optimizer,
                    recipe=recipe,
                    next_step=step,
                    evaluations=evaluations,
                )
            lookout.has_saved()
            if failure and (at_end or stop or collapsed):
                # Told to the user by rank 0 alone, which knows why.
                kind = UserError if rank == 0 else RuntimeError
                raise kind(f"{failure}; the last checkpoint is from before: mend that, and use --resume")
            if failure:
                reporter.send(f"{failure}; training goes on, the last checkpoint is from before")
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


def checkpoints_of(job: Job) -> list[ray.train.Checkpoint]:
    """What the run can go on from, the newest last: its own checkpoints, else `init_from`, else nothing."""
    reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
    if reported or job.init_from is None:
        return [one.checkpoint for one in reported]
    filesystem, path = open_uri(job.init_from)
    return [ray.train.Checkpoint(path, filesystem)]


def restore_newest(
    kept: list[ray.train.Checkpoint], job: Job, algorithm: BaseModel, optimizer: torch.optim.Optimizer
) -> tuple[int, Any]:
    """Restores the newest checkpoint that is whole. Returns (next step, evaluations so far), the same on all ranks.

    kept: as `checkpoints_of` gives them; without any it is (0, []). Raises UserError where all are broken.
    """
    broken: list[str] = []
    step = 0
    evaluations: Any = []
    for saved in reversed(kept):
        try:
            with saved.as_directory() as directory:
                step, evaluations = checkpoint.restore(directory, algorithm, optimizer)
            break
        except checkpoint.BrokenCheckpoint as error:
            broken.append(str(error))
    if kept and len(broken) == len(kept):
        raise UserError(
            f"{'; '.join(broken)}; no earlier checkpoint is kept: begin again under another --name"
        )
    if distributed.agree(step)[0] != step:
        raise RuntimeError(
            "ranks read different checkpoints; the storage is not the same for all of them yet"
        )
    for each in broken if distributed.rank() == 0 else ():
        job.dealer.tell.remote(f"{each}; going on from the one before, of step {step}")
    return step, evaluations


def save_checkpoint(rank: int, **contents: Any) -> str | None:
    """Rank 0 writes into the run's folder, then all ranks report: Ray Train's `report` is a barrier.

    Returns why nothing could be saved, None where it was; on all ranks both or neither.
    """
    storage = ray.train.get_context().get_storage()
    filesystem, written, failure = storage.storage_filesystem, None, "not saved: see rank 0"
    if rank == 0:
        try:
            written = checkpoint.store(filesystem, storage.experiment_fs_path, **contents)
        except OSError as error:
            failure = f"checkpoint: step {contents['next_step']} cannot be saved: {error}"
    if not distributed.agree(written is not None)[0]:
        return failure
    ray.train.report(
        {"step": contents["next_step"]},
        checkpoint=None if written is None else ray.train.Checkpoint(written, filesystem),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )
    return None


def _quiet_ray_train() -> None:
    """Ray Train logs each reported result at INFO, under a logger named after its file's path."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    import ray.train.v2._internal.execution.context as train_context

    train_context.logger.setLevel(logging.WARNING)
