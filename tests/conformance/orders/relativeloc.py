"""RelativeLoc: recorded are neighbours and, once for each, the centre; dropout is off where `drop_p` is 0."""

from typing import Any

import torch
from torch import Tensor

from ssl_ray.models import RelativeLoc
from tests.conformance.orders.order import Order, Samples
from tests.conformance.orders.rotationpred import together


class RelativeLocOrder(Order):
    def model(
        self, record: dict[str, Any], override: dict[str, Tensor], extra: dict[str, Any]
    ) -> RelativeLoc:
        model: RelativeLoc = super().model(record, override, extra)
        model.neck.dropout = extra["drop_p"]
        return model

    def views(self, inputs: list[Tensor]) -> list[Tensor]:
        neighbours, centers = (x.unflatten(0, (-1, 8)) for x in inputs)
        assert torch.equal(centers, centers[:, :1].expand_as(centers))
        return [centers[:, 0], *neighbours.unbind(1)]

    def samples(self, draws, extra) -> Samples:
        labels = extra["patch_label"]
        assert torch.equal(labels, torch.arange(8).expand_as(labels))
        assert [draw["op"] for draw in draws] in ([], ["dropout_scale"])
        return {draw["op"]: draw["value"].unflatten(0, (-1, 8)) for draw in draws}

    def features(self, model: RelativeLoc, views: list[Tensor], samples: Samples) -> tuple[Tensor, ...]:
        return model([together(views[1:])], samples, mode="tensor")

    def prediction(
        self, model: RelativeLoc, views: list[Tensor], samples: Samples, recorded: Samples
    ) -> dict[str, Tensor]:
        answer = model(views, samples, mode="predict")
        around, center = (
            model.backbone(x)[-1] for x in (together(views[1:]), views[0].repeat_interleave(8, 0))
        )
        logits = model.head.logits(model.neck((torch.cat([around, center], 1),))).detach()
        logits = logits.unflatten(0, (-1, 8))
        torch.testing.assert_close(answer.probability, logits.softmax(-1))
        assert torch.equal(answer.label, logits.argmax(-1))
        return {"head4": logits}
