"""Drives our models in MMSelfSup's order of events.

MMSelfSup moves the teacher inside the loss call, between the online and the teacher's forward pass, and fills queues
at the end of it. Ours does both in `after_step`. Here our public methods are called when MMSelfSup would.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ssl_ray.interop import mmselfsup
from ssl_ray.models import MAE, BaseModel, MoCo, Output

SAMPLE_OF_DRAW = {"randperm": "shuffle", "rand": "mask_noise"}


def model_of(record: dict, override: dict[str, Tensor]) -> BaseModel:
    model = mmselfsup.from_config(record["config"]["model"]).double()
    mmselfsup.load_state_dict(model, record["state_dict"] | override)
    return model


def samples_of(draws: list[dict], extra: dict) -> dict[str, Tensor]:
    samples = {SAMPLE_OF_DRAW[draw["op"]]: draw["value"] for draw in draws}
    assert len(samples) == len(draws)
    assert all(isinstance(value, Tensor) for value in extra.values())
    return samples | extra


@contextlib.contextmanager
def teacher_moves_inside(model: BaseModel) -> Iterator[None]:
    teacher = getattr(model, "teacher", None)
    if teacher is None:
        yield
        return
    due = True

    def move(*_: object) -> None:
        nonlocal due
        if due:
            teacher.update(model.backbone, model.neck, model.momentum)
            due = False

    handle = teacher.register_forward_pre_hook(move)
    yield
    handle.remove()


def loss(model: BaseModel, views: list[Tensor], samples: dict[str, Tensor]) -> Output:
    with teacher_moves_inside(model):
        return model(views, samples, mode="loss")


def write_memories(model: BaseModel, state: dict[str, Tensor]) -> None:
    """What `after_step` does, but for the teacher."""
    if isinstance(model, MoCo):
        model.queue.enqueue(state["keys"])


def optimizer_of(record: dict, model: BaseModel) -> torch.optim.Optimizer:
    settings = dict(record["config"]["trace_optimizer"])
    assert settings.pop("type") == "SGD"
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **settings)


def gradients(model: BaseModel) -> dict[str, Tensor]:
    return {
        mmselfsup.their_key(model, name): p.grad for name, p in model.named_parameters() if p.grad is not None
    }


def prediction(model: BaseModel, views: list[Tensor], samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our prediction under the names of the recording."""
    answer = model(views, samples, mode="predict")
    if isinstance(model, MAE):
        mean, std = model.head.statistics(model.head.patchify(views[0]))
        return {"pred_nhwc": answer.pred, "mask_nhwc": answer.mask, "mean": mean, "std": std}
    raise TypeError(f"how does {type(model).__name__}'s prediction correspond?")
