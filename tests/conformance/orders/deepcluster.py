"""DeepCluster: labels come with the batch, from the data set."""

from typing import Any

import torch
from torch import Tensor

from ssl_ray.interop import mmselfsup
from ssl_ray.models import DeepCluster
from tests.conformance.orders.order import Order, Samples


class DeepClusterOrder(Order):
    def model(
        self, record: dict[str, Any], override: dict[str, Tensor], extra: dict[str, Any]
    ) -> DeepCluster:
        """The images of the batch, over and over, are the data set: enough of them to be clustered."""
        labels: Tensor = extra["clustering_label"]
        config = record["config"]["model"]
        copies = -(-config["head"]["num_classes"] // len(labels))
        model = mmselfsup.from_config(config | {"num_samples": copies * len(labels)}).double()
        assert isinstance(model, DeepCluster)
        mmselfsup.load_state_dict(model, record["state_dict"] | override)
        model.labels.copy_(labels.repeat(copies))
        return model

    def samples(self, draws: list[dict[str, Any]], extra: dict[str, Any]) -> Samples:
        assert not draws
        return {"index": torch.arange(len(extra["clustering_label"]))}

    def prediction(
        self, model: DeepCluster, views: list[Tensor], samples: Samples, recorded: Samples
    ) -> dict[str, Tensor]:
        """MMSelfSup's answer is the logits, of which ours is the softmax."""
        maps = model(views, samples, mode="tensor")
        logits = model.head.logits(maps if model.neck is None else model.neck(maps))
        answer = model(views, samples, mode="predict")
        torch.testing.assert_close(answer.probability, logits.softmax(1))
        assert torch.equal(answer.label, logits.argmax(1))
        return {"head4": logits}
