"""A recipe whose steps take a stated time and no CPU: what is left of a run is the data path and the orchestration."""

import time

import torch
from torch import Tensor, nn
from torch.optim import SGD

from ssl_ray.data.views import plain_views
from ssl_ray.models import BaseModel, Output, Samples, Views
from ssl_ray.recipe import Evaluation, Optimization, Paper, Recipe, Training
from ssl_ray.spec import Spec


class Sleeper(BaseModel):
    """One weight to train, and a loss that sleeps. seconds: of each step, as an accelerator would take them."""

    def __init__(self, seconds: float = 0.1) -> None:
        # Views stay as they arrive: normalising them is the accelerator's work.
        super().__init__(nn.Identity(), data_preprocessor=nn.Identity())
        self.seconds = seconds
        self.weight = nn.Parameter(torch.ones(1))

    def extract_feat(self, views: Views) -> tuple[Tensor, ...]:
        """See `BaseModel`."""
        return (views[0],)

    def loss(self, views: Views, samples: Samples) -> Output:
        """See `BaseModel`."""
        time.sleep(self.seconds)
        return Output(self.weight.square().sum())

    def predict(self, views: Views, samples: Samples) -> Tensor:
        """See `BaseModel`."""
        return views[0]


SMALL = Recipe(
    name="sleeper",
    paper=Paper(title="none", arxiv="none", year=2024, result="none"),
    algorithm=Spec(Sleeper),
    views=Spec(plain_views, size=28, crop_fraction=1.0),  # of 28 px images: nothing but decoding
    optimization=Optimization(optimizer=Spec(SGD), base_lr=1e-6, schedule="constant"),
    training=Training(epochs=1, global_batch_size=64, channels_last=True, checkpoint_minutes=None),
    evaluation=Evaluation(every_epochs=None),
)
