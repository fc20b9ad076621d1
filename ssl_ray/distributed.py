"""Rank, world size and the collectives that algorithms need; identity without a process group.

Row order. A step's global batch is dealt to ranks by row number modulo W: local row i of rank r is global row
i * W + r. `gather` puts rows back into that order, so that queues, banks and losses see the same global batch on any
number of workers.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    """True when a process group of more than one process is running."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def _interleave(parts: list[Tensor]) -> Tensor:
    """W tensors (B, ...) of ranks 0..W-1 -> (B * W, ...) in global row order."""
    return torch.stack(parts, dim=1).flatten(0, 1)


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in global row order, without gradient.

    x: (B, ...), equal B on all ranks. Returns (B * W, ...).
    """
    if not is_distributed():
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return _interleave(parts)


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return gather(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        # Each rank's loss uses every row, so a row's gradient is the sum over ranks.
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[rank() :: world_size()]


def gather_with_grad(x: Tensor) -> Tensor:
    """As `gather`, with gradient: the backward pass sums over ranks what each rank's loss asks of a row.

    With a loss that is the mean over local rows, and DDP's mean over ranks, parameters get the gradient of the mean
    over the global batch.
    """
    return _GatherWithGrad.apply(x) if is_distributed() else x


@torch.no_grad()
def sum_(x: Tensor) -> Tensor:
    """Sum over ranks, in place, without gradient. Returns x."""
    if is_distributed():
        dist.all_reduce(x)
    return x


class _SumWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return sum_(x.clone())

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        # Each rank's loss uses the sum, so each addend's gradient is the sum over ranks.
        return sum_(grad.clone())


def sum_with_grad(x: Tensor) -> Tensor:
    """Sum over ranks, with gradient; x is left as it is.

    When every rank computes the same loss from the sum, DDP's mean over ranks gives parameters the gradient of that
    loss.
    """
    return _SumWithGrad.apply(x) if is_distributed() else x


@torch.no_grad()
def broadcast(x: Tensor) -> Tensor:
    """Rank 0's x on every rank, in place. Returns x."""
    if is_distributed():
        dist.broadcast(x, src=0)
    return x


def local_rows(x: Tensor) -> Tensor:
    """This rank's rows of a global batch, the inverse of `gather`."""
    return x[rank() :: world_size()]


@torch.no_grad()
def mean(x: Tensor) -> Tensor:
    """Mean over ranks, without gradient; x is left as it is."""
    return sum_(x.clone()) / world_size()


@torch.no_grad()
def average_batch_norm_(module: nn.Module) -> None:
    """Running statistics of batch norms averaged over ranks, in place.

    Without SyncBN each rank's are its own; what is evaluated and what is saved should be one network.
    """
    if not is_distributed():
        return
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    statistics = [s for m in norms for s in (m.running_mean, m.running_var) if s is not None]
    if statistics:
        together = sum_(torch.cat([s.flatten() for s in statistics])) / world_size()
        for mine, average in zip(
            statistics, torch.split(together, [s.numel() for s in statistics]), strict=True
        ):
            mine.copy_(average.view_as(mine))


def agree(*values: int) -> list[int]:
    """Rank 0's flags and whole numbers on every rank."""
    if not is_distributed():
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    agreed: list[int] = broadcast(torch.tensor(values, dtype=torch.int64, device=device)).tolist()
    return agreed


def barrier() -> None:
    """Returns when every rank has arrived."""
    if is_distributed():
        dist.barrier()
