"""From a recipe's optimiser and an algorithm's parameter groups to a torch optimiser."""

from collections.abc import Sequence

from torch.optim import SGD, AdamW, Optimizer

from ssl_ray.eager import spare_compiler
from ssl_ray.errors import UserError
from ssl_ray.models.base import ParamGroup
from ssl_ray.spec import Spec
from ssl_ray.training.lars import LARS

__all__ = ["LARS", "SGD", "AdamW", "build_optimizer", "set_lr"]


def build_optimizer(spec: Spec, groups: Sequence[ParamGroup], lr: float) -> Optimizer:
    """Builds `spec` (SGD, AdamW, LARS or any torch optimiser class) over the algorithm's groups.

    A group's `weight_decay` and `momentum` multiply the optimiser's own; `lr_scale`, `fixed_lr` and `adapt` become keys
    of the torch group, where `set_lr` and LARS read them. Raises UserError if nothing is trainable.
    """
    filled = [group for group in groups if group.params]
    if not filled:
        raise UserError(
            "optimizer: the model has no trainable parameter; unfreeze a part of the backbone or the head"
        )
    params = [
        {"params": g.params, "lr_scale": g.lr_scale, "fixed_lr": g.fixed_lr, "adapt": g.adapt} for g in filled
    ]
    spare_compiler()
    optimizer: Optimizer = spec.build(params=params, lr=lr)
    for torch_group, group in zip(optimizer.param_groups, filled, strict=True):
        for name in ("weight_decay", "momentum"):
            if name in torch_group:
                torch_group[name] *= getattr(group, name)
    set_lr(optimizer, lr, peak_lr=lr)
    return optimizer


def set_lr(optimizer: Optimizer, lr: float, peak_lr: float) -> None:
    """Sets every group's lr for the coming step: `lr`, or `peak_lr` where `fixed_lr`, times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = (peak_lr if group["fixed_lr"] else lr) * group["lr_scale"]
