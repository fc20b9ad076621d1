"""Optimisers step as torch's own do, and torch's compiler stays out of the process."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from ssl_ray import eager
from ssl_ray.training.lars import LARS

OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.RMSprop, {}),
    (LARS, {"weight_decay": 0.1}),
]


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_step_is_torchs_own(kind: Any, settings: dict[str, Any]) -> None:
    def trained(step: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
        optimizer = kind(model.parameters(), lr=0.1, **settings)
        for _ in range(3):
            model(torch.randn(4, 5)).square().sum().backward()
            step(optimizer)
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    eager.spare_compiler()
    for one, other in zip(trained(eager.step), trained(lambda optimizer: optimizer.step()), strict=True):
        assert torch.equal(one, other)


def test_what_a_users_optimizer_does_around_its_step_is_done() -> None:
    class Counting(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            self.steps += 1
            return super().step(closure)

    optimizer = Counting(nn.Linear(2, 1).parameters(), lr=0.1)
    eager.step(optimizer)
    assert optimizer.steps == 1


PROCESS = """
import sys
import torch
from torch import nn
from ssl_ray import eager
from ssl_ray.evaluation.logistic import fit_logistic
from ssl_ray.experiments import load
from ssl_ray.recipe import overrides
from ssl_ray.training.optim import build_optimizer
from ssl_ray.training.preflight import preflight

recipe = overrides(load("moco").SMALL, {"optimization.lr": 0.1})
preflight(recipe)
algorithm = recipe.algorithm.build()
optimizer = build_optimizer(recipe.optimization.optimizer, algorithm.param_groups(), 0.1)
algorithm([torch.zeros(16, 3, 28, 28)] * 2, {"index": torch.arange(16)}, mode="loss").loss.backward()
eager.step(optimizer)
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
fit_logistic(torch.randn(9, 3), torch.arange(9) % 2, 2, 0.1)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


@pytest.mark.process
def test_preflight_and_training_do_not_import_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
