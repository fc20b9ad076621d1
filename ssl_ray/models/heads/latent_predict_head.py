"""The head of BYOL and SimSiam: predict one view's projection from the other's."""

from torch import Tensor, nn

from ssl_ray.models.losses.cosine_similarity_loss import CosineSimilarityLoss


class LatentPredictHead(nn.Module):
    """loss(predictor(projection), target), without gradient to the target.

    Args:
        predictor: called with a tuple of one (B, D), as a neck is; a NonLinearNeck(with_avg_pool=False).
        loss: called with prediction and target, both (B, D); CosineSimilarityLoss() when None.
    """

    def __init__(self, predictor: nn.Module, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.predictor = predictor
        self.loss = loss or CosineSimilarityLoss()

    def forward(self, projection: Tensor, target: Tensor) -> Tensor:
        """Scalar loss. projection, target: (B, D)."""
        loss: Tensor = self.loss(self.predictor((projection,)), target.detach())
        return loss
