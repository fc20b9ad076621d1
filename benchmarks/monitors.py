"""What the monitors say of every algorithm's SMALL recipe, whether an alarm is raised, and what they cost.

Trains in this process, without Ray, by the recipe's own steps on the images in their order, and evaluates `--looks`
times with every monitor on. Cost: seconds of one evaluation (images decoded before, as from the second one on) with the
std alone, with kNN, with the default monitors, with all; and as a share of training time, the recipe's epochs between
two evaluations long, at the measured time of a step without its data.

    python benchmarks/monitors.py [NAME ...] [--steps 140] [--looks 2] [--data fashion] [--set PATH=VALUE] [--json]
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ssl_ray import experiments
from ssl_ray.console import Console
from ssl_ray.data.pipeline import ViewPipeline, make_batch
from ssl_ray.data.plan import Plan
from ssl_ray.data.source import Dataset, Source, open_dataset
from ssl_ray.evaluation.alarm import collapses
from ssl_ray.evaluation.extract import TrainingSet
from ssl_ray.evaluation.online import OnlineEvaluation
from ssl_ray.models.base import BaseModel, Progress
from ssl_ray.recipe import Evaluation, Recipe, overrides, parse_settings
from ssl_ray.resolve import resolve
from ssl_ray.training.optim import build_optimizer, set_lr
from ssl_ray.training.schedules import learning_rate
from ssl_ray.training.step import begin_epoch, step_seed, take_step

EVERY = Evaluation(alignment=True, lidar=True).monitors
GROUPS = {
    "std": frozenset({"std"}),
    "kNN": frozenset({"std", "knn"}),
    "default": Evaluation().monitors,
    "all": EVERY,
}
SHOWN = {
    "std": "embedding/std",
    "rankme": "embedding/rankme",
    "p/std": "projection/std",
    "p/rankme": "projection/rankme",
    "top": "embedding/top_direction",
    "p/top": "projection/top_direction",
    "alpha": "embedding/alpha_req",
    "unif": "embedding/uniformity",
    "align": "embedding/alignment",
    "lidar": "embedding/lidar",
    "occup": "clusters/occupancy",
    "largest": "clusters/largest",
    "kNN": "val/knn_top1",
    "linear": "val/linear_top1",
}


def batches(
    source: Source, pipeline: ViewPipeline, plan: Plan, steps: int
) -> Iterator[tuple[list[Tensor], Any]]:
    """Views and samples of each step, as one worker gets them."""
    for step in range(steps):
        indices, epoch = plan.indices(step, 0, 1), plan.epoch(step)
        columns, broken = make_batch(pipeline, source.read(indices), indices, plan.seed, epoch)
        assert not broken
        tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
        views = [tensors.pop(f"view_{i}").permute(0, 3, 1, 2) for i in range(len(pipeline.sizes))]
        yield views, tensors


class Trial:
    """A recipe in training. seconds: of its steps so far, without data and without what comes between epochs."""

    def __init__(self, recipe: Recipe, dataset: Dataset) -> None:
        self.recipe, self.dataset = recipe, dataset
        self.pipeline: ViewPipeline = recipe.views.build()
        torch.manual_seed(recipe.training.seed)
        self.algorithm: BaseModel = recipe.algorithm.build()
        if recipe.training.channels_last:
            self.algorithm.to(memory_format=torch.channels_last)
        lr = recipe.optimization.lr
        assert lr is not None
        self.optimizer = build_optimizer(recipe.optimization.optimizer, self.algorithm.param_groups(), lr)
        self.plan = Plan(
            dataset.train.info.num_samples, recipe.training.global_batch_size, recipe.training.seed
        )
        self.seconds = 0.0

    def evaluation(self, monitors: frozenset[str]) -> OnlineEvaluation:
        """As the loop makes it."""
        settings = self.recipe.evaluation
        return OnlineEvaluation(
            self.dataset.train,
            self.dataset.val,
            size=self.pipeline.eval_size,
            monitors=monitors,
            k=settings.k,
            temperature=settings.temperature,
            max_samples=settings.max_samples,
            views=self.pipeline,
            view_images=settings.view_images,
            lidar_views=settings.lidar_views,
        )

    def train(self, steps: int) -> Iterator[int]:
        """Takes the steps; yields the number done after each."""
        training, optimization = self.recipe.training, self.recipe.optimization
        total = self.plan.total_steps(training.epochs)
        extract = TrainingSet(self.dataset.train, self.algorithm, size=self.pipeline.eval_size)
        data = batches(self.dataset.train, self.pipeline, self.plan, steps)
        for step, (views, samples) in enumerate(data):
            progress = Progress(step, total, self.plan.epoch(step), training.epochs)
            torch.manual_seed(step_seed(training.seed, step, 0))
            if step % self.plan.steps_per_epoch == 0:
                begin_epoch(self.algorithm, self.optimizer, progress, extract)
            started = time.perf_counter()
            assert optimization.lr is not None
            set_lr(self.optimizer, learning_rate(optimization, progress), peak_lr=optimization.lr)
            take_step(
                self.algorithm,
                self.algorithm,
                self.optimizer,
                views,
                samples,
                progress,
                accumulate=training.accumulate,
                clip_grad_norm=optimization.clip_grad_norm,
            )
            self.seconds += time.perf_counter() - started
            yield step + 1


def seconds_of(evaluation: OnlineEvaluation, algorithm: BaseModel) -> float:
    """Of one evaluation that has decoded its images before."""
    evaluation.run(algorithm)
    started = time.perf_counter()
    evaluation.run(algorithm)
    return time.perf_counter() - started


def measure(
    name: str, dataset: Dataset, steps: int, looks: int, settings: list[str], cost: bool
) -> dict[str, Any]:
    """One algorithm: its evaluations, the alarms of each, and the cost."""
    small: Recipe = experiments.load(name).SMALL
    recipe = resolve(overrides(small, parse_settings(settings)), dataset.train.info).recipe
    trial = Trial(recipe, dataset)
    everything = trial.evaluation(EVERY)
    evaluations = [{"step": 0} | everything.run(trial.algorithm, trained=False)]
    raised: dict[int, list[str]] = {}
    for done in trial.train(steps):
        if done % max(1, steps // looks) == 0:
            evaluations.append({"step": done} | everything.run(trial.algorithm))
            raised[done] = [str(alarm) for alarm in collapses(evaluations)]
    row: dict[str, Any] = {"algorithm": name, "steps": steps, "evaluations": evaluations, "alarms": raised}
    if cost:
        step = trial.seconds / steps
        between = step * trial.plan.steps_per_epoch * (recipe.evaluation.every_epochs or 1)
        row["cost"] = {"step_seconds": step, "between_evaluations_seconds": between}
        for group, monitors in GROUPS.items():
            seconds = seconds_of(trial.evaluation(monitors), trial.algorithm)
            row["cost"][group] = {"seconds": seconds, "share": seconds / (between + seconds)}
    return row


def main() -> None:
    """Measures the named algorithms, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", default=experiments.names())
    parser.add_argument("--steps", type=int, default=140, help="an epoch of the embedded set has 140")
    parser.add_argument("--looks", type=int, default=2)
    parser.add_argument("--data", default="fashion")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="PATH=VALUE")
    parser.add_argument("--no-cost", action="store_true", help="values and alarms only")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each algorithm")
    options = parser.parse_args()
    console = Console("quiet" if options.json else "normal")
    dataset = open_dataset(options.data)
    rows = []
    for name in options.names or experiments.names():
        row = measure(name, dataset, options.steps, options.looks, options.settings, not options.no_cost)
        rows.append(row)
        if options.json:
            print(json.dumps(row), flush=True)
    if options.json:
        return
    console.table(
        "Monitors",
        ["algorithm", "step", *SHOWN],
        [
            (
                row["algorithm"],
                str(e["step"]),
                *(f"{e[key]:.3g}" if key in e else "" for key in SHOWN.values()),
            )
            for row in rows
            for e in row["evaluations"]
        ],
    )
    for row in rows:
        for step, alarms in row["alarms"].items():
            for alarm in alarms:
                console.print(f"{row['algorithm']} at step {step}: {alarm}")
    if not options.no_cost:
        console.table(
            "Cost of an evaluation, and as a share of training time",
            ["algorithm", "step ms", *(f"{group} {unit}" for unit in "s%" for group in GROUPS)],
            [
                (
                    row["algorithm"],
                    f"{1000 * row['cost']['step_seconds']:.0f}",
                    *(f"{row['cost'][group]['seconds']:.2f}" for group in GROUPS),
                    *(f"{100 * row['cost'][group]['share']:.1f}" for group in GROUPS),
                )
                for row in rows
            ],
        )


if __name__ == "__main__":
    main()
