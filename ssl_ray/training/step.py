"""One optimiser step: forward and backward over the micro-batches of a batch, and everything around the update.

And what comes before the first step of an epoch.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssl_ray import eager
from ssl_ray.models.base import BaseModel, Extract, Output, Progress

Micro = tuple[list[Tensor], dict[str, Tensor]]


class Step(NamedTuple):
    """metrics: loss, the algorithm's parts and grad_norm, scalars on the device.

    taken: the gradient was finite. zero: it was exactly 0.
    """

    metrics: dict[str, Tensor]
    taken: bool
    zero: bool


def begin_epoch(
    algorithm: BaseModel, optimizer: torch.optim.Optimizer, progress: Progress, extract: Extract
) -> None:
    """The algorithm's own work between epochs; the optimiser forgets what it knew of parameters that were made anew."""
    for parameter in algorithm.before_epoch(progress, extract) or ():
        optimizer.state.pop(parameter, None)


def take_step(
    algorithm: BaseModel,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: list[Tensor],
    samples: dict[str, Tensor],
    progress: Progress,
    *,
    accumulate: int = 1,
    precision: str = "fp32",
    clip_grad_norm: float | None = None,
) -> Step:
    """Trains on this rank's rows of one step. model: the algorithm, or DDP around it.

    A gradient that is not finite changes nothing but batch norm's statistics: no update, no teacher, no memory.
    """
    outputs = []
    for i, (part, columns) in enumerate(micro_batches(views, samples, accumulate)):
        with _no_sync(model, last=i == accumulate - 1):
            with autocast(views[0].device, precision):
                output: Output = model(part, columns, mode="loss")
            (output.loss / accumulate).backward()  # type: ignore[no-untyped-call]
        outputs.append(output)
    metrics, state = merge(outputs)

    algorithm.before_step(progress)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    # The same on all ranks: DDP has averaged the gradients, and one that is not finite spoils the average.
    metrics["grad_norm"] = norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    size = norm.item()  # one wait for the device answers both questions
    taken = math.isfinite(size)
    if taken:
        if clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(trained, clip_grad_norm, norm)
        eager.step(optimizer)
        algorithm.after_step(state, progress)
    optimizer.zero_grad(set_to_none=True)
    return Step(metrics, taken, zero=size == 0)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds the generators that a step on `device` draws from, to the numbers that `torch.manual_seed` leads to.

    That one also asks for every accelerator that could be there, and where none is notes the call stack of whoever
    asks, each time: 0.7 ms of a worker's step, to 1.4 us here.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of torch's generators for one step of one rank: what a loss draws depends on its position alone."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def micro_batches(views: list[Tensor], samples: dict[str, Tensor], count: int) -> Iterator[Micro]:
    """Cuts a batch into `count` runs of rows."""
    parts = zip(*(view.chunk(count) for view in views), strict=True)
    columns = {name: column.chunk(count) for name, column in samples.items()}
    for i, part in enumerate(parts):
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
