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
from ssl_ray.data.stream import Batch, Batches
from ssl_ray.errors import UserError
from ssl_ray.evaluation.extract import TrainingSet
from ssl_ray.evaluation.online import OnlineEvaluation
from ssl_ray.models.base import BaseModel, Output, Progress
from ssl_ray.models.sync_batch_norm import synchronize_batch_norm
from ssl_ray.recipe import Recipe
from ssl_ray.tracking import TrackingTarget, make_tracker
from ssl_ray.training import checkpoint
from ssl_ray.training.notices import Notices
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
    except UserError as error:
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
    if training.sync_bn and world_size > 1:
        algorithm = synchronize_batch_norm(algorithm, device)
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
    view_sizes = recipe.views.build().sizes
    batches = Batches(
        job.dealer,
        first_step=step,
        rank=rank,
        batch_size=job.plan.global_batch_size // world_size,
        views=len(view_sizes),
        device=device,
        channels_last=training.channels_last,
    )
    reporter = Reporter(job, rank, device, step)
    low_precision = torch.bfloat16 if training.precision == "bf16" else None
    evaluate = OnlineEvaluation(
        job.dataset.train,
        job.dataset.val,
        size=view_sizes[0],
        k=recipe.evaluation.k,
        temperature=recipe.evaluation.temperature,
        max_samples=recipe.evaluation.max_samples,
        device=device,
        autocast=low_precision,
    )
    extract = TrainingSet(
        job.dataset.train, algorithm, size=view_sizes[0], device=device, autocast=low_precision
    )
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    skipped = 0  # steps in a row without a finite gradient
    last_save = time.monotonic()

    def judge(step: int) -> None:
        """Online evaluation; every rank takes part."""
        with reporter.paused():
            distributed.average_batch_norm_(algorithm)
            result = evaluate.run(algorithm)
            if step == 0 and view_sizes[0] <= SMALL_IMAGE and (top1 := evaluate.raw_pixel_knn()) is not None:
                result["baseline/raw_pixels_knn_top1"] = top1
        evaluations.append({"epoch": round(step / job.plan.steps_per_epoch, 2), "step": step, **result})
        # An untrained network's features may lie as close together as a collapsed one's.
        reporter.evaluation(
            evaluations[-1], evaluate.warning if step else None, evaluate.broken | extract.broken
        )

    if step == 0 and recipe.evaluation.every_epochs:
        judge(step)

    while step < job.stop_step:
        progress = Progress(step, job.total_steps, job.plan.epoch(step), training.epochs)
        torch.manual_seed(step_seed(training.seed, step, rank))
        if step % job.plan.steps_per_epoch == 0:
            with reporter.paused():
                algorithm.before_epoch(progress, extract)
        set_lr(optimizer, lr := learning_rate(optimization, progress), peak_lr=optimization.lr)

        batch = next(batches)
        outputs = []
        for i, (views, samples) in enumerate(micro_batches(batch, training.accumulate)):
            last = i == training.accumulate - 1
            with _no_sync(model, last):
                with autocast(device, training.precision):
                    output: Output = model(views, samples, mode="loss")
                (output.loss / training.accumulate).backward()  # type: ignore[no-untyped-call]
            outputs.append(output)
        metrics, state = merge(outputs)

        algorithm.before_step(progress)
        gradients = [p.grad for p in trained if p.grad is not None]
        # The same on all ranks: DDP has averaged the gradients, and one that is not finite spoils the average.
        metrics["grad_norm"] = norm = nn.utils.get_total_norm(gradients)
        if torch.isfinite(norm):
            if optimization.clip_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(trained, optimization.clip_grad_norm, norm)
            optimizer.step()
            algorithm.after_step(state, progress)
            skipped = 0
        else:
            skipped += 1
            reporter.send(
                f"step {step + 1}: the gradient is not finite (loss {metrics['loss']:.4g}); step skipped"
            )
            if skipped >= training.max_nonfinite_steps:
                raise UserError(
                    f"the gradient is not finite since step {step + 2 - skipped} ({skipped} steps in a row); lower "
                    "optimization.base_lr, lengthen optimization.warmup_epochs or set optimization.clip_grad_norm, "
                    "and start again; the last checkpoint is from before"
                )
        optimizer.zero_grad(set_to_none=True)
        step += 1

        at_end = step == job.stop_step
        save = training.checkpoint_steps is not None and step % training.checkpoint_steps == 0
        stop = False
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
            judge(step)
        if save or at_end or stop:
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
        if stop:
            break

    reporter.close(step)
    return {"steps": step, "evaluations": evaluations, "images_per_second": reporter.images_per_second}


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


class Reporter:
    """Rank 0's voice: metrics to MLflow, status and notes to the driver's console. Silent on other ranks.

    images_per_second: of all steps so far, without the time that `paused` took out.
    """

    def __init__(self, job: Job, rank: int, device: torch.device, first_step: int) -> None:
        self.job, self.rank, self.device = job, rank, device
        self.tracker = make_tracker(job.tracking if rank == 0 else None)
        self.images_per_second = 0.0
        self.first_step = self.logged_step = first_step
        self.seconds = 0.0
        self.waited = 0.0
        self.clock = time.perf_counter()
        self.broken: set[str] = set()
        if rank == 0:
            Notices(self.send).attach()  # this process's own stderr is a worker's log file

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here counts for no step."""
        started = time.perf_counter()
        yield
        self.clock += time.perf_counter() - started

    def step(self, progress: Progress, metrics: dict[str, Tensor], lr: float, waited: float) -> None:
        """Logs a step. A collective: metrics are means over ranks."""
        names = sorted(metrics)
        values = distributed.mean(torch.stack([metrics[name].float() for name in names])).tolist()
        now = time.perf_counter()
        done = progress.step + 1
        steps, seconds = done - self.logged_step, now - self.clock
        data_wait = (waited - self.waited) / seconds
        images = self.job.plan.global_batch_size
        self.logged_step, self.waited, self.clock = done, waited, now
        self.seconds += seconds
        self.images_per_second = (done - self.first_step) * images / self.seconds
        if self.rank != 0:
            return
        named = dict(zip(names, values, strict=True))
        record = {f"train/{name}": value for name, value in named.items()}
        record |= {
            "train/lr": lr,
            "perf/images_per_second": steps * images / seconds,
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
                images_per_second=steps * images / seconds,
                data_wait=data_wait,
                eta=(self.job.stop_step - done) * seconds / steps,
            )
        )

    def evaluation(self, result: dict[str, float], warning: str | None, broken: dict[str, str]) -> None:
        """Logs an online evaluation, and what it could not read."""
        if self.rank != 0:
            return
        metrics = {name: value for name, value in result.items() if "/" in name}
        self.tracker.log(metrics, step=int(result["step"]))
        self.send(result)
        if warning is not None:
            self.send(warning)
        for path in broken.keys() - self.broken:
            self.send(f"{path}: {broken[path]}; left out of the evaluation")
        self.broken |= broken.keys()

    def send(self, event: Any) -> None:
        """To the driver, from rank 0; not waited for."""
        if self.rank == 0:
            self.job.events.actor.put_nowait.remote(event)

    def close(self, step: int) -> None:
        """Logs what is known at the end, and delivers what is left."""
        if self.rank == 0:
            broken: int = ray.get(self.job.dealer.count_broken.remote())
            self.tracker.log({"data/broken_images": broken}, step=step)
        self.tracker.close()


def _quiet_ray_train() -> None:
    """Ray Train logs each reported result at INFO, under a logger named after its file's path."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    import ray.train.v2._internal.execution.context as train_context

    train_context.logger.setLevel(logging.WARNING)
