"""MAE: mode `tensor` needs the noise; the prediction is recorded with the statistics that undo the normalisation."""

import torch
from torch import Tensor

from ssl_ray.models import MAE
from tests.conformance.orders.order import Order, Samples


class MAEOrder(Order):
    sample_of_draw = {"rand": "mask_noise"}

    def features(self, model: MAE, views: list[Tensor], samples: Samples) -> Tensor:
        return model.extract_feat(views, samples)

    def prediction(
        self, model: MAE, views: list[Tensor], samples: Samples, recorded: Samples
    ) -> dict[str, Tensor]:
        """Theirs undoes a normalisation with the statistics that it is given, whether the target has one or not."""
        head, answer = model.head, model(views, samples, mode="predict")
        if head.norm_pix or "mean" not in recorded:
            mean, std = head.statistics(head.patchify(views[0]))
            pred = answer.pred
        else:
            mean, std = (recorded[name].double() for name in ("mean", "std"))
            plain = self.features(model, views, samples)
            torch.testing.assert_close(answer.pred, head.unpatchify(plain).permute(0, 2, 3, 1))
            pred = head.unpatchify(plain * std + mean).permute(0, 2, 3, 1)
        return {"pred_nhwc": pred, "mask_nhwc": answer.mask, "mean": mean, "std": std}
