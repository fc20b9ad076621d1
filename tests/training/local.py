"""The training loop in this process, without Ray: a tiny run takes about a second.

    run = local.train(local.job("moco", ["training.checkpoint_steps=4"]), tmp_path)
    run.summary["steps"], run.messages, run.last["algorithm"]

A run that goes on is another `train` in the same folder.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_ray import experiments
from ssl_ray.data.plan import Plan
from ssl_ray.data.source import Dataset, open_dataset
from ssl_ray.data.sources.base import Subset
from ssl_ray.experiments import load_recipe
from ssl_ray.models import BaseModel, Progress
from ssl_ray.recipe import Recipe, overrides, parse_settings
from ssl_ray.resolve import resolve
from ssl_ray.tracking import TrackingTarget, make_tracker
from ssl_ray.training import loop
from ssl_ray.training.context import LOCAL_CHECKPOINTS, LocalContext
from ssl_ray.training.folder import RunFolder

# Images and steps of an epoch, and of the two epochs that a run takes unless told.
IMAGES, BATCH = 192, 32
STEPS_PER_EPOCH = IMAGES // BATCH
STEPS = 2 * STEPS_PER_EPOCH
NARROW = ("algorithm.backbone.width=8", "algorithm.neck.in_channels=64")
COMMON = (
    "views.size=16",
    f"training.global_batch_size={BATCH}",
    "training.epochs=2",
    "training.log_steps=1",
    "training.checkpoint_minutes=null",
    "evaluation.k=5",
    "evaluation.max_samples=64",
    "evaluation.every_epochs=null",
)
# What each needs to be small.
SETTINGS = {
    "moco": (*NARROW, "algorithm.queue_size=128"),
    "simclr": NARROW,
    "mae": (),
    "swav": (*NARROW, "views.small_size=12", "algorithm.queue_size=64"),
    "npid": (*NARROW, "algorithm.num_negatives=64"),
    "odc": (*NARROW, "algorithm.head.num_classes=10", "algorithm.memory.num_clusters=10"),
    "deepcluster": (
        "algorithm.backbone.width=8",
        "algorithm.interval=1",
        "algorithm.head.in_channels=64",
        "algorithm.head.num_classes=10",
    ),
}


@cache
def digits() -> Dataset:
    """Some of the embedded digits, and others to judge by."""
    whole = open_dataset("digits")
    assert whole.val is not None
    return Dataset(Subset(whole.train, 0, IMAGES), Subset(whole.val, 0, 100))


def job(
    recipe: str | Recipe,
    settings: Iterable[str] = (),
    *,
    dataset: Dataset | None = None,
    init_from: str | None = None,
) -> loop.Job:
    """What a worker is given. recipe: a key of SETTINGS, or any, taken as it is but for `settings`."""
    dataset = dataset or digits()
    if isinstance(recipe, str):
        settings = [*COMMON, *SETTINGS[recipe], *settings]
        recipe = experiments.load(recipe).SMALL
    resolved = resolve(overrides(recipe, parse_settings(settings)), dataset.train.info).recipe
    training = resolved.training
    plan = Plan(dataset.train.info.num_samples, training.global_batch_size, training.seed)
    total_steps = plan.total_steps(training.epochs)
    stop_step = min(total_steps, training.max_steps or total_steps)
    return loop.Job(resolved, dataset, plan, total_steps, stop_step, None, init_from)


OPTIONS = {"--epochs": "training.epochs", "--steps": "training.max_steps", "--seed": "training.seed"}


def job_of(recipe: str, *arguments: str) -> loop.Job:
    """What `ssl-ray pretrain RECIPE ARGUMENTS` trains; options that do not change it are passed over."""
    given = [argument.partition("=") for argument in arguments]
    (data,) = [value for option, _, value in given if option == "--data"]
    dataset = open_dataset(data)
    settings = [value for option, _, value in given if option == "--set"]
    settings += [f"{OPTIONS[option]}={value}" for option, _, value in given if option in OPTIONS]
    loaded = load_recipe(recipe, scale="auto", info=dataset.train.info).recipe
    return job(loaded, settings, dataset=dataset)


@dataclass
class Run:
    """A run that has ended, by itself or by an error."""

    summary: dict[str, Any]
    context: LocalContext

    @property
    def messages(self) -> list[Any]:
        return self.context.messages

    @property
    def said(self) -> list[str]:
        """What people would read beside readings and evaluations."""
        return [message for message in self.messages if isinstance(message, str)]

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of those that are registered, oldest first."""
        listed = json.loads((Path(self.context.folder.uri) / LOCAL_CHECKPOINTS).read_text())["checkpoints"]
        return [Path(self.context.folder.uri) / name for name in listed]

    @property
    def saved_steps(self) -> list[int]:
        """The next step of each."""
        return [content(path)["next_step"] for path in self.checkpoints]

    @property
    def last(self) -> dict[str, Any]:
        """Content of the newest."""
        return content(self.checkpoints[-1])


def content(checkpoint: Path) -> dict[str, Any]:
    """What is in a checkpoint."""
    found: dict[str, Any] = torch.load(checkpoint / "checkpoint.pt", weights_only=True)
    return found


class Killed(Exception):
    """The end of a process, as far as a loop can meet it."""


class Hooked(LocalContext):
    """A context in which something happens: `hook` is called with the progress after a method of the algorithm.

    method: before_epoch, before_step or after_step. The hook may raise Killed, which nothing survives but files.
    """

    def __init__(self, *args: Any, hook: Callable[[Progress], None], method: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hook, self.method = hook, method

    def wrap(self, algorithm: nn.Module) -> nn.Module:
        method = getattr(algorithm, self.method)

        def hooked(*args: Any) -> Any:
            result = method(*args)
            self.hook(next(arg for arg in args if isinstance(arg, Progress)))
            return result

        setattr(algorithm, self.method, hooked)
        return super().wrap(algorithm)


def train(
    job: loop.Job,
    folder: Path,
    *,
    keep: int = 100,
    context: LocalContext | None = None,
    tracking: TrackingTarget | None = None,
) -> Run:
    """Trains in this process, from the folder's last checkpoint if there is one.

    With one thread, as Ray's worker of one CPU: the order of sums is the same to the last bit.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with make_tracker(tracking) as tracker:
            context = context or LocalContext(
                job.stream, RunFolder.at(str(folder), "run"), keep=keep, tracker=tracker
            )
            return Run(loop.train(job, context), context)
    finally:
        torch.set_num_threads(threads)


def hooked(
    job: loop.Job, folder: Path, hook: Callable[[Progress], None], method: str = "before_step"
) -> Hooked:
    """A context for `train`; see `Hooked`."""
    return Hooked(job.stream, RunFolder.at(str(folder), "run"), keep=100, hook=hook, method=method)


def assert_same(ours: Any, theirs: Any, path: str = "checkpoint") -> None:
    """Two contents of checkpoints are equal to the last bit."""
    if isinstance(theirs, Tensor):
        assert torch.equal(ours, theirs), path
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), path
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{path}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), path
        for i, (mine, its) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, its, f"{path}[{i}]")
    else:
        assert ours == theirs or (ours != ours and theirs != theirs), path  # NaN


def algorithm_of(job: loop.Job, content: dict[str, Any]) -> BaseModel:
    """The algorithm as a checkpoint has it."""
    algorithm: BaseModel = job.recipe.algorithm.build()
    algorithm.load_state_dict(content["algorithm"])
    return algorithm
