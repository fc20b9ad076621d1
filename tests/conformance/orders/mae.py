"""MAE: mode `tensor` needs the noise; the prediction is recorded with the statistics that undo the normalisation."""

from torch import Tensor

from ssl_ray.models import MAE
from tests.conformance.orders.order import Order, Samples


class MAEOrder(Order):
    sample_of_draw = {"rand": "mask_noise"}

    def features(self, model: MAE, views: list[Tensor], samples: Samples) -> Tensor:
        return model.extract_feat(views, samples)

    def prediction(self, model: MAE, views: list[Tensor], samples: Samples) -> dict[str, Tensor]:
        answer = model(views, samples, mode="predict")
        mean, std = model.head.statistics(model.head.patchify(views[0]))
        return {"pred_nhwc": answer.pred, "mask_nhwc": answer.mask, "mean": mean, "std": std}
