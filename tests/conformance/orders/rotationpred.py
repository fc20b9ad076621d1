"""RotationPred: the recorded input is the batch of turned images; labels are their places; logits are recorded."""

import torch
from torch import Tensor

from ssl_ray.models import RotationPred
from tests.conformance.orders.order import Order, Samples


class RotationPredOrder(Order):
    def views(self, inputs: list[Tensor]) -> list[Tensor]:
        return list(inputs[0].unflatten(0, (-1, 4)).unbind(1))

    def samples(self, draws, extra) -> Samples:
        assert not draws
        labels = extra["rot_label"]
        assert torch.equal(labels, torch.arange(4).expand_as(labels))
        return {}

    def features(self, model: RotationPred, views: list[Tensor], samples: Samples) -> tuple[Tensor, ...]:
        return model([together(views)], samples, mode="tensor")

    def prediction(
        self, model: RotationPred, views: list[Tensor], samples: Samples, recorded: Samples
    ) -> dict[str, Tensor]:
        answer = model(views, samples, mode="predict")
        logits = model.head.logits(model.backbone(together(views))).detach().unflatten(0, (-1, len(views)))
        torch.testing.assert_close(answer.probability, logits.softmax(-1))
        assert torch.equal(answer.label, logits.argmax(-1))
        return {"head4": logits}


def together(views: list[Tensor]) -> Tensor:
    """All views as one batch, image by image."""
    return torch.stack(views, dim=1).flatten(0, 1)
