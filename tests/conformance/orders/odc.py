"""ODC: the memory is written at the end of the loss call; a hook tends the clusters, and says how often."""

from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from ssl_ray.models import ODC, ODCMemory, Output, Progress
from tests.conformance.orders.order import Order, Samples


class ODCOrder(Order):
    sample_of_draw = {"dropout_scale": "dropout_scale"}
    single_parts = frozenset({"change_ratio"})

    def model(self, record: dict[str, Any], override: dict[str, Tensor], extra: dict[str, Any]) -> ODC:
        model = super().model(record, override, extra)
        assert isinstance(model, ODC)
        model.memory.features.copy_(extra["feature_bank"])
        model.memory.labels.copy_(extra["label_bank"])
        model.neck.dropout = extra["drop_p"]
        model.centroids_interval = extra["centroids_update_interval"]
        model.small_clusters_interval = extra["deal_with_small_clusters_interval"]
        model.reweight_power = extra.get("reweight_pow", model.reweight_power)
        model.memory.split = SklearnSplit(model.memory)  # type: ignore[method-assign]
        # The loss knows the weights only from when the hook first made them.
        first = model.head.register_forward_pre_hook(lambda head, args: unweighted(args))

        def unweighted(args: tuple[Any, ...]) -> tuple[Any, ...]:
            first.remove()
            return args[:2]

        return model

    def samples(self, draws: list[dict[str, Any]], extra: dict[str, Any]) -> Samples:
        return super().samples(draws, {"index": extra["sample_idx"]})

    def write_memories(self, model: ODC, output: Output, progress: Progress) -> None:
        model.memory.write(**output.state)

    def after_iteration(self, model: ODC, extra: dict[str, Any], iteration: int) -> None:
        model.tend_clusters(iteration)

    def outside_state(self, model: ODC) -> dict[str, Tensor]:
        return {"feature_bank": model.memory.features, "label_bank": model.memory.labels}


class SklearnSplit:
    """Theirs, of which one half goes depends on the seeds that scikit-learn draws."""

    def __init__(self, memory: ODCMemory) -> None:
        self.memory = memory

    def __call__(self, members: Tensor) -> Tensor:
        means = KMeans(n_clusters=2, random_state=0, max_iter=20)
        return torch.from_numpy(means.fit(self.memory.features[members].float().numpy()).labels_).bool()
