"""What MMSelfSup does in one call and ours does in two, and what a recording names otherwise.

MMSelfSup moves the teacher inside the loss call, between the online and the teacher's forward pass, and fills queues
at the end of it. Ours does both in `after_step`. Here our public methods are called when MMSelfSup would.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ssl_ray.interop import mmselfsup
from ssl_ray.models import BaseModel, Output, Progress

Samples = dict[str, Tensor]


class Order:
    """The order of events of an algorithm with nothing special about it. Subclasses say what is.

    sample_of_draw: name in `samples` of a recorded draw. part_names: our metric of a recorded part of the loss.
    single_parts: parts that MMSelfSup computes in float32 whatever the inputs are.
    same_losses_in_our_order: with `after_step` after the optimiser step the losses are those of the recording, because
    an update at the end of step k is an update at the start of step k + 1.
    """

    sample_of_draw: dict[str, str] = {}
    part_names: dict[str, str] = {}
    single_parts: frozenset[str] = frozenset()
    same_losses_in_our_order = True

    def model(self, record: dict[str, Any], override: dict[str, Tensor], extra: dict[str, Any]) -> BaseModel:
        """Our model in the recorded state, float64. `override`: a variant's other state; `extra`: of the run."""
        model = mmselfsup.from_config(record["config"]["model"]).double()
        mmselfsup.load_state_dict(model, record["state_dict"] | override)
        return model

    def views(self, inputs: list[Tensor]) -> list[Tensor]:
        """The recorded inputs as our views."""
        return inputs

    def samples(self, draws: list[dict[str, Any]], extra: dict[str, Any]) -> Samples:
        """Recorded draws and extras as our `samples`."""
        samples = {self.sample_of_draw[draw["op"]]: draw["value"] for draw in draws}
        assert len(samples) == len(draws)
        assert all(isinstance(value, Tensor) for value in extra.values())
        return samples | extra

    def features(self, model: BaseModel, views: list[Tensor], samples: Samples) -> Any:
        """What a recording calls `features`."""
        return model(views, samples, mode="tensor")

    def prediction(
        self, model: BaseModel, views: list[Tensor], samples: Samples, recorded: Samples
    ) -> dict[str, Tensor]:
        """Our prediction under the names of the recording. `recorded`: theirs, and what it was given."""
        raise TypeError(f"how does {type(model).__name__}'s prediction correspond?")

    def momentum(self, model: BaseModel, progress: Progress) -> float:
        """Weight of the old average in the teacher's update."""
        momentum: float = model.momentum  # type: ignore[assignment]
        return momentum

    @contextlib.contextmanager
    def _teacher_moves_inside(self, model: BaseModel, progress: Progress) -> Iterator[None]:
        teacher: Any = getattr(model, "teacher", None)
        if teacher is None:
            yield
            return
        due = True

        def move(*_: object) -> None:
            nonlocal due
            if due:
                teacher.update(model.backbone, model.neck, self.momentum(model, progress))
                due = False

        handle = teacher.register_forward_pre_hook(move)
        yield
        handle.remove()

    def loss(self, model: BaseModel, views: list[Tensor], samples: Samples, progress: Progress) -> Output:
        """MMSelfSup's loss call, but for memories."""
        with self._teacher_moves_inside(model, progress):
            output: Output = model(views, samples, mode="loss")
        return output

    def write_memories(self, model: BaseModel, output: Output, progress: Progress) -> None:
        """The rest of the loss call: what `after_step` does, but for the teacher."""

    def after_iteration(self, model: BaseModel, extra: dict[str, Any], iteration: int) -> None:
        """MMSelfSup's hook after iteration 1, 2, ..."""

    def outside_state(self, model: BaseModel) -> dict[str, Tensor]:
        """State that MMSelfSup keeps outside its state dict, under the names of the recording."""
        return {}

    def progress(self, step: int, extra: dict[str, Any], record: dict[str, Any]) -> Progress:
        """Where the run is at step 0, 1, ... of a recording."""
        return Progress(step, extra.get("max_iters", 10), 0, 1)

    def optimizer(self, record: dict[str, Any], model: BaseModel) -> torch.optim.Optimizer:
        """The optimiser of the recorded trace."""
        settings = dict(record["config"]["trace_optimizer"])
        assert settings.pop("type") == "SGD"
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **settings)


def gradients(model: BaseModel) -> dict[str, Tensor]:
    """Gradients under MMSelfSup's names and in its layouts."""
    layouts = mmselfsup.ALGORITHMS[type(model).__name__].layouts
    return {
        mmselfsup.their_key(model, name): layouts[name][1](p.grad) if name in layouts else p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }
