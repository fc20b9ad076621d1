"""Batch norm over the rows of all workers."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from ssl_ray import distributed

_BatchNorm = nn.modules.batchnorm._BatchNorm
_M = TypeVar("_M", bound=nn.Module)


class SyncBatchNorm(_BatchNorm):
    """Batch norm whose statistics in training are those of the global batch, gradient included, on any device.

    torch.nn.SyncBatchNorm does the same, in one kernel, on GPUs only. Every rank must have as many rows as the others.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # (B, C, ...) of any number of axes

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same, normalised per channel."""
        if not self.training or not distributed.is_distributed():
            normal: Tensor = super().forward(input)
            return normal
        axes = [0, *range(2, input.dim())]
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = distributed.world_size() * (x.numel() // x.shape[1])
        mean = distributed.sum_with_grad(x.sum(axes)) / count
        shape = [1, -1] + [1] * (input.dim() - 2)
        centred = x - mean.view(shape)
        variance = distributed.sum_with_grad(centred.square().sum(axes)) / count
        if self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self._track(mean.detach(), variance.detach() * count / (count - 1))
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def synchronize_batch_norm(module: _M, device: torch.device) -> _M:
    """`module` with every batch norm in it synchronised: torch's on GPUs, ours elsewhere. Weights and names stay."""
    if device.type == "cuda":
        on_gpu: _M = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return on_gpu
    return _converted(module)


def _converted(module: _M) -> _M:
    if isinstance(module, _BatchNorm):
        synced = SyncBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        synced._parameters, synced._buffers = module._parameters, module._buffers
        synced.training = module.training
        return synced  # type: ignore[return-value]
    for name, child in module.named_children():
        setattr(module, name, _converted(child))
    return module
