"""The training loop: what each Ray Train worker runs, top to bottom."""

import contextlib
import hashlib
import inspect
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device, prepare_model
from torch import Tensor, nn

from ssl_ray import distributed
from ssl_ray.console import TrainStatus
from ssl_ray.data.plan import Plan
from ssl_ray.data.source import Dataset
from ssl_ray.data.stream import Batch, Batches, StreamError
from ssl_ray.errors import UserError
from ssl_ray.evaluation.online import OnlineEvaluation
from ssl_ray.models.base import BaseModel, Output, Progress
from ssl_ray.recipe import Recipe
from ssl_ray.tracking import TrackingTarget, make_tracker
from ssl_ray.training import checkpoint
from ssl_ray.training.optim import build_optimizer, set_lr
from ssl_ray.training.schedules import learning_rate

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
    max_steps says otherwise. dealer: handle of the stream's actor; events: a Ray queue that the driver reads.
    """

    recipe: Recipe
    dataset: Dataset
    plan: Plan
    total_steps: int
    stop_step: int
    dealer: Any
    events: Any
    tracking: TrackingTarget | None


@dataclass(frozen=True)
class Fatal:
    """Event for the driver: the run cannot go on, and starting it again would not help."""

    message: str


def train_loop(config: dict[str, Job]) -> dict[str, Any]:
    """What Ray Train calls: `train`, with the user's errors told to the driver rather than retried."""
    job = config["job"]
    try:
        return train(job)
    except (UserError, StreamError) as error:
        ray.get(job.events.actor.put.remote(Fatal(str(error))))
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
    if training.sync_bn and world_size > 1 and device.type == "cuda":
        algorithm = nn.SyncBatchNorm.convert_sync_batchnorm(algorithm)  # type: ignore[no-untyped-call]
    optimizer = build_optimizer(optimization.optimizer, algorithm.param_groups(), optimization.lr)

    step = 0
    evaluations: list[dict[str, float]] = []
    if (latest := ray.train.get_checkpoint()) is not None:
        with latest.as_directory() as directory:
            step, evaluations = checkpoint.restore(directory, algorithm, optimizer)

    if training.compile:
        algorithm.compile()
    model = prepare_model(algorithm, parallel_strategy_kwargs=DDP)

    if rank == 0:
        ray.get(job.dealer.start.remote(step, world_size))
    distributed.barrier()
    batches = Batches(
        job.dealer,
        first_step=step,
        rank=rank,
        batch_size=job.plan.global_batch_size // world_size,
        views=len(recipe_views(recipe)),
        device=device,
        channels_last=training.channels_last,
    )
    reporter = Reporter(job, rank, world_size, device, step)
    evaluate = OnlineEvaluation(
        job.dataset.train,
        job.dataset.val,
        size=recipe_views(recipe)[0],
        k=recipe.evaluation.k,
        temperature=recipe.evaluation.temperature,
        max_samples=recipe.evaluation.max_samples,
        device=device,
        autocast=torch.bfloat16 if training.precision == "bf16" else None,
    )
    nonfinite = NonFinite(training.max_nonfinite_steps, device)
    last_save = time.monotonic()

    if step == 0 and recipe.evaluation.every_epochs:
        evaluations.append({"epoch": 0, "step": 0, **evaluate.run(algorithm)})
        if recipe_views(recipe)[0] <= SMALL_IMAGE and (pixels := evaluate.raw_pixel_knn()) is not None:
            evaluations[-1]["baseline/raw_pixels_knn_top1"] = pixels
        reporter.evaluation(evaluations[-1], evaluate.warning)

    while step < job.stop_step:
        progress = Progress(step, job.total_steps, job.plan.epoch(step), training.epochs)
        if step % job.plan.steps_per_epoch == 0:
            algorithm.before_epoch(progress)
        set_lr(optimizer, lr := learning_rate(optimization, progress), peak_lr=optimization.lr)
        torch.manual_seed(step_seed(training.seed, step, rank))

        batch = next(batches)
        outputs = []
        for i, (views, samples) in enumerate(micro_batches(batch, training.accumulate)):
            last = i == training.accumulate - 1
            with _no_sync(model, last), autocast(device, training.precision):
                output: Output = model(views, samples, mode="loss")
            with _no_sync(model, last):
                (output.loss / training.accumulate).backward()  # type: ignore[no-untyped-call]
            outputs.append(output)
        metrics, state = merge(outputs)
        nonfinite.watch(metrics["loss"])

        algorithm.before_step(progress)
        if optimization.clip_grad_norm is not None:
            metrics["grad_norm"] = nn.utils.clip_grad_norm_(
                algorithm.parameters(), optimization.clip_grad_norm
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        algorithm.after_step(state, progress)
        step += 1

        at_end = step == job.stop_step
        save = training.checkpoint_steps is not None and step % training.checkpoint_steps == 0
        if step % training.log_steps == 0 or at_end:
            nonfinite.check(step)
            reporter.step(progress, metrics, lr, batches.waited)
            due = training.checkpoint_minutes is not None and (
                time.monotonic() - last_save > 60 * training.checkpoint_minutes
            )
            # Rank 0's clock and rank 0's news decide for all: every rank has to report a checkpoint together.
            save_now, stop = distributed.agree(due or batches.stop_requested, batches.stop_requested)
            save = save or save_now
        else:
            stop = False
        epoch_ended = step % job.plan.steps_per_epoch == 0
        every = recipe.evaluation.every_epochs
        if every and (at_end or (epoch_ended and (progress.epoch + 1) % every == 0)):
            evaluations.append({"epoch": progress.epoch + 1, "step": step, **evaluate.run(algorithm)})
            reporter.evaluation(evaluations[-1], evaluate.warning)
        if save or at_end or stop:
            nonfinite.check(step, allowed=1)
            reporter.flush()
            save_checkpoint(
                rank,
                algorithm=algorithm,
                optimizer=optimizer,
                recipe=recipe,
                next_step=step,
                evaluations=evaluations,
            )
            last_save = time.monotonic()
        if stop:
            break

    reporter.close()
    return {
        "steps": step,
        "evaluations": evaluations,
        "images_per_second": reporter.images_per_second,
    }


def recipe_views(recipe: Recipe) -> tuple[int, ...]:
    """Sides of the recipe's views, pixels."""
    sizes: tuple[int, ...] = recipe.views.build().sizes
    return sizes


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of torch's generators for one step of one rank: what a loss draws depends on its position alone."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def micro_batches(batch: Batch, count: int) -> Iterator[tuple[list[Tensor], dict[str, Tensor]]]:
    """Cuts a batch into `count` runs of rows."""
    views = zip(*(view.chunk(count) for view in batch.views), strict=True)
    columns = {name: column.chunk(count) for name, column in batch.samples.items()}
    for i, part in enumerate(views):
        yield list(part), {name: chunks[i] for name, chunks in columns.items()}


def merge(outputs: list[Output]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Micro-batches of one step: metrics (the loss among them) averaged, state joined along the batch."""
    metrics = {"loss": torch.stack([o.loss.detach() for o in outputs]).mean()}
    for name in outputs[0].metrics:
        metrics[name] = torch.stack([o.metrics[name] for o in outputs]).mean()
    if len(outputs) == 1:
        return metrics, outputs[0].state
    return metrics, {name: torch.cat([o.state[name] for o in outputs]) for name in outputs[0].state}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast, or nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _no_sync(model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Only the last micro-batch of a step exchanges gradients."""
    if last or not isinstance(model, nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


def save_checkpoint(rank: int, **contents: Any) -> None:
    """Rank 0 writes; all ranks report, for Ray Train's `report` is a barrier."""
    metrics = {"step": contents["next_step"]}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as directory:
        checkpoint.save(directory, **contents)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


class NonFinite:
    """Counts steps in a row whose loss was not finite, without waiting for the device."""

    def __init__(self, allowed: int, device: torch.device) -> None:
        self.allowed = allowed
        self.streak = torch.zeros((), dtype=torch.long, device=device)

    def watch(self, loss: Tensor) -> None:
        """After each step: 0 for a finite loss on every rank, one more otherwise."""
        finite = torch.isfinite(loss)
        self.streak = torch.where(finite, 0, self.streak + 1)

    def check(self, step: int, allowed: int | None = None) -> None:
        """On log steps; with allowed=1 before a checkpoint, which must not hold poisoned weights."""
        streak = int(distributed.max_(self.streak))
        if streak >= (allowed or self.allowed):
            raise UserError(
                f"the loss is not finite since step {step - streak} ({streak} steps in a row); the last checkpoint is "
                "from before; lower optimization.base_lr, lengthen optimization.warmup_epochs or set "
                "optimization.clip_grad_norm"
            )


class Reporter:
    """Rank 0's voice: metrics to MLflow, status and notes to the driver's console. Silent on other ranks."""

    def __init__(self, job: Job, rank: int, world_size: int, device: torch.device, first_step: int) -> None:
        self.job, self.rank, self.device = job, rank, device
        self.tracker = make_tracker(job.tracking if rank == 0 else None)
        self.images_per_second = 0.0
        self.logged_step = first_step
        self.waited = 0.0
        self.clock = time.perf_counter()

    def step(self, progress: Progress, metrics: dict[str, Tensor], lr: float, waited: float) -> None:
        """Logs a step. A collective: metrics are means over ranks."""
        names = sorted(metrics)
        values = distributed.mean(torch.stack([metrics[name].float() for name in names])).tolist()
        now = time.perf_counter()
        done = progress.step + 1
        steps, seconds = done - self.logged_step, now - self.clock
        data_wait = (waited - self.waited) / seconds
        self.images_per_second = steps * self.job.plan.global_batch_size / seconds
        self.logged_step, self.waited, self.clock = done, waited, now
        if self.rank != 0:
            return
        named = dict(zip(names, values, strict=True))
        record = {f"train/{name}": value for name, value in named.items()}
        record |= {
            "train/lr": lr,
            "perf/images_per_second": self.images_per_second,
            "perf/step_time": seconds / steps,
            "perf/data_wait": data_wait,
        }
        if self.device.type == "cuda":
            record["sys/gpu_mem_gb"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.tracker.log(record, step=done)
        self.send(
            TrainStatus(
                step=done,
                total_steps=self.job.stop_step,
                epoch=progress.epoch + 1,
                total_epochs=progress.total_epochs,
                loss=named["loss"],
                lr=lr,
                images_per_second=self.images_per_second,
                data_wait=data_wait,
                eta=(self.job.stop_step - done) * seconds / steps,
            )
        )

    def evaluation(self, result: dict[str, float], warning: str | None) -> None:
        """Logs an online evaluation and takes its time out of the throughput."""
        if self.rank == 0:
            metrics = {name: value for name, value in result.items() if "/" in name}
            self.tracker.log(metrics, step=int(result["step"]))
            self.send(result)
            if warning is not None:
                self.send(warning)
        self.clock = time.perf_counter()

    def send(self, event: Any) -> None:
        """To the driver; not waited for."""
        self.job.events.actor.put_nowait.remote(event)

    def flush(self) -> None:
        """Before a checkpoint: what was logged up to it is on its way."""
        self.tracker.flush()

    def close(self) -> None:
        """Delivers what is left."""
        self.tracker.close()


def _quiet_ray_train() -> None:
    """Ray Train logs each reported result at INFO, under a logger named after its file's path."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    import ray.train.v2._internal.execution.context as train_context

    train_context.logger.setLevel(logging.WARNING)
