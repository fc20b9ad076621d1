"""The training loop: what each worker runs, top to bottom."""

from dataclasses import dataclass
from typing import Any

import torch

from ssl_ray import distributed
from ssl_ray.data.batches import Batches
from ssl_ray.data.blocks import StreamConfig
from ssl_ray.data.pipeline import ViewPipeline
from ssl_ray.data.plan import Plan
from ssl_ray.data.source import Dataset
from ssl_ray.models.base import BaseModel, Progress
from ssl_ray.models.sync_batch_norm import synchronize_batch_norm
from ssl_ray.recipe import Recipe
from ssl_ray.spec import Spec
from ssl_ray.training.checkpoint_manager import CheckpointManager
from ssl_ray.training.context import WorkerContext
from ssl_ray.training.events import Begun
from ssl_ray.training.gradients import GradientMonitor
from ssl_ray.training.lookout import Lookout
from ssl_ray.training.optim import build_optimizer, set_lr
from ssl_ray.training.periodic_evaluation import PeriodicEvaluation
from ssl_ray.training.reporter import Reporter
from ssl_ray.training.schedules import learning_rate
from ssl_ray.training.step import begin_epoch, seed_generators, step_seed, take_step
from ssl_ray.training.watchdog import Watchdog
from ssl_ray.workers import accumulation


@dataclass(frozen=True)
class Job:
    """All a worker needs to know.

    recipe: resolved. total_steps: what schedules run over; stop_step: where the run ends, the same unless
    max_steps says otherwise. dealer: handle of the stream's actor, None without Ray. init_from: another run's
    checkpoint (path or URI), to begin with where this run has none of its own. evaluation_threads: of torch while an
    evaluation runs, None for those of training.
    """

    recipe: Recipe
    dataset: Dataset
    plan: Plan
    total_steps: int
    stop_step: int
    dealer: Any
    init_from: str | None = None
    evaluation_threads: int | None = None

    @property
    def stream(self) -> StreamConfig:
        """What makes its blocks."""
        return stream_config(self.recipe, self.dataset, self.plan, self.stop_step)


def stream_config(recipe: Recipe, dataset: Dataset, plan: Plan, stop_step: int) -> StreamConfig:
    """What makes the blocks of a resolved recipe's run, up to `stop_step`."""
    return StreamConfig(
        dataset.train,
        recipe.views.build(),
        plan,
        total_steps=stop_step,
        max_broken=recipe.data.max_broken,
        with_labels=getattr(recipe.algorithm.target, "needs_labels", False),
    )


def train(job: Job, context: WorkerContext) -> dict[str, Any]:
    """Trains for the job's steps, from the last checkpoint if there is one. Returns the summary of the run."""
    recipe, training, optimization = job.recipe, job.recipe.training, job.recipe.optimization
    assert optimization.lr is not None, "the driver resolves recipes"
    kept = context.checkpoints(job.init_from)  # they hold what has become of pretrained weights
    algorithm = build(recipe.untrained if kept else recipe.algorithm, recipe, context)
    optimizer = build_optimizer(optimization.optimizer, algorithm.param_groups(), optimization.lr)
    checkpoints = CheckpointManager(context, recipe, algorithm, optimizer)
    step, evaluations = checkpoints.restore(kept)
    stop = context.rank == 0 and context.poll(saved=False)[0]
    if distributed.agree(stop)[0]:  # before a first step: there is nothing to save
        return {"steps": step, "evaluations": evaluations, "images_per_second": 0.0, "collapsed": False}

    if training.compile:
        algorithm.compile()
    model = context.wrap(algorithm)
    pipeline: ViewPipeline = recipe.views.build()
    batches = Batches(
        context.blocks(step),
        first_step=step,
        batch_size=job.plan.global_batch_size // context.world_size,
        views=len(pipeline.sizes),
        device=context.device,
        channels_last=training.channels_last,
    )
    reporter = Reporter(
        context,
        first_step=step,
        stop_step=job.stop_step,
        images_per_step=job.plan.global_batch_size,
    )
    with batches, reporter, Watchdog(context, training.hang_minutes) as watchdog:
        reporter.send(Begun(step, context.world_size))
        evaluation = PeriodicEvaluation(
            recipe,
            job.dataset,
            job.plan,
            algorithm,
            pipeline,
            reporter,
            evaluations,
            threads=job.evaluation_threads,
        )
        lookout = Lookout(context, step, training.checkpoint_minutes)
        monitor = GradientMonitor(reporter.send, training.max_nonfinite_steps)
        accumulate = accumulation(recipe, context.world_size)
        collapsed = False
        if step == 0 and evaluation.due(step, at_end=False):
            evaluation.run(step)

        while step < job.stop_step and not (stop or collapsed):
            progress = Progress(step, job.total_steps, job.plan.epoch(step), training.epochs)
            seed_generators(step_seed(training.seed, step, context.rank), context.device)
            if step % job.plan.steps_per_epoch == 0:
                with reporter.paused():
                    begin_epoch(algorithm, optimizer, progress, evaluation.training_set)
            set_lr(optimizer, lr := learning_rate(optimization, progress), peak_lr=optimization.lr)

            batch = next(batches)
            with watchdog.step():
                done = take_step(
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
            step += 1
            monitor(step, done)

            at_end = step == job.stop_step
            if step % training.log_steps == 0 or at_end:
                reporter.step(progress, done.metrics, lr, batches.waited)
            stop, save = lookout(step)
            save = save or (training.checkpoint_steps is not None and step % training.checkpoint_steps == 0)
            collapsed = evaluation.due(step, at_end=at_end) and evaluation.run(step)
            if save or at_end or stop or collapsed:
                with reporter.paused():
                    distributed.average_batch_norm_(algorithm)
                    reporter.flush()
                    checkpoints.save(step, evaluation.results, last=at_end or stop or collapsed)
                lookout.has_saved()

        reporter.close(step, context.broken_images())
    return {
        "steps": step,
        "evaluations": evaluation.results,
        "images_per_second": reporter.images_per_second,
        "alarms": [str(alarm) for alarm in evaluation.alarms],
        "collapsed": collapsed,
    }


def build(algorithm: Spec, recipe: Recipe, context: WorkerContext) -> BaseModel:
    """The algorithm on the worker's device, as the recipe wants it; the same weights on every rank."""
    torch.manual_seed(recipe.training.seed)
    built: BaseModel = algorithm.build().to(context.device)
    if recipe.training.channels_last:
        built.to(memory_format=torch.channels_last)
    if recipe.training.sync_bn and context.world_size > 1:
        built = synchronize_batch_norm(built, context.device)
    return built
