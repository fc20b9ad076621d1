"""LARS: SGD with momentum whose step is scaled, tensor by tensor, to the size of the weights."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ssl_ray.ranges import NotNegative, Positive, Rate


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling. Source: arXiv 1708.03888; defaults as in the official MoCo v3 and Barlow Twins.

    For a weight w with gradient g, decay wd and trust coefficient eta:

        d = g + wd * w;   r = eta * |w| / |d|;   m = momentum * m + r * d;   w = w - lr * m

    r is 1 where either norm is 0, and in groups with `adapt=False` (biases and norms: these see plain SGD).
    Two switches give the other published forms. `split_norm`: r = eta * |w| / (|g| + wd * |w| + eps), r = 1 where |w|
    or |g| is 0. `lr_in_momentum`: m = momentum * m + lr * r * d; w = w - m, which differs where lr varies.

    | form                                | split_norm | lr_in_momentum |
    |-------------------------------------|------------|----------------|
    | MoCo v3, Barlow Twins, MAE official | False      | False          |
    | SimCLR official                     | False      | True           |
    | MMSelfSup 1.x                       | True       | True           |
    | SwAV official (LARC without clip)   | True       | False          |

    Norms stay on the device: a step never waits for it.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: Positive,
        momentum: Rate = 0.9,
        weight_decay: NotNegative = 0.0,
        trust_coefficient: Positive = 0.001,
        eps: NotNegative = 1e-8,
        nesterov: bool = False,
        split_norm: bool = False,
        lr_in_momentum: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "nesterov": nesterov,
            "split_norm": split_norm,
            "lr_in_momentum": lr_in_momentum,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient. Returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        updates = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        if group["adapt"]:
            ratios = _trust_ratios(group, params, grads, updates)
            torch._foreach_mul_(updates, ratios)
        lr = group["lr"]
        if group["lr_in_momentum"]:
            torch._foreach_mul_(updates, lr)
            lr = 1.0
        if group["momentum"]:
            buffers = [self._buffer(p) for p in params]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            if group["nesterov"]:
                torch._foreach_add_(updates, buffers, alpha=group["momentum"])
            else:
                updates = buffers
        torch._foreach_add_(params, updates, alpha=-lr)

    def _buffer(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _trust_ratios(
    group: dict[str, Any], params: list[Tensor], grads: list[Tensor], updates: list[Tensor]
) -> list[Tensor]:
    """One 0-d tensor per parameter; `updates` are the decayed gradients d."""
    weight = torch.stack(torch._foreach_norm(params))
    if group["split_norm"]:
        step = torch.stack(torch._foreach_norm(grads))
        size = step + group["weight_decay"] * weight + group["eps"]
    else:
        step = size = torch.stack(torch._foreach_norm(updates))
    ratio = group["trust_coefficient"] * weight / size
    return list(torch.where((weight > 0) & (step > 0), ratio, torch.ones_like(ratio)).unbind())
