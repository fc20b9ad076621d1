"""What comes back from a checkpoint, and what is the recipe's."""

from pathlib import Path

import torch
from torch import nn

from ssl_ray import experiments
from ssl_ray.training import checkpoint


def test_rates_are_the_recipe_s_and_state_the_checkpoint_s(tmp_path: Path) -> None:
    def parts(weight_decay: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        module = nn.Linear(3, 2)
        groups = [
            {"params": [module.weight], "lr_scale": 0.5},
            {"params": [module.bias], "weight_decay": 0.0},
        ]
        return module, torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=weight_decay)

    module, optimizer = parts(weight_decay=0.1)
    module(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    recipe = experiments.load("moco").SMALL
    checkpoint.save(
        tmp_path, algorithm=module, optimizer=optimizer, recipe=recipe, next_step=1, evaluations=[]
    )

    other, changed = parts(weight_decay=0.2)
    assert checkpoint.restore(tmp_path, other, changed) == (1, [])
    assert torch.equal(other.weight, module.weight)
    assert torch.equal(
        changed.state[other.weight]["momentum_buffer"], optimizer.state[module.weight]["momentum_buffer"]
    )
    assert [g["weight_decay"] for g in changed.param_groups] == [0.2, 0.0]
    assert changed.param_groups[0]["lr_scale"] == 0.5
    assert changed.param_groups[0]["params"] == [other.weight]
