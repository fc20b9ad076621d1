"""SimMIM: mode `tensor` needs the mask."""

from torch import Tensor

from ssl_ray.models import SimMIM
from tests.conformance.orders.order import Order, Samples


class SimMIMOrder(Order):
    def features(self, model: SimMIM, views: list[Tensor], samples: Samples) -> Tensor:
        return model.extract_feat(views, samples)

    def prediction(
        self, model: SimMIM, views: list[Tensor], samples: Samples, recorded: Samples
    ) -> dict[str, Tensor]:
        answer = model(views, samples, mode="predict")
        return {"pred_nhwc": answer.pred, "mask_nhwc": answer.mask}
