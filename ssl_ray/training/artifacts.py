"""What a run leaves in MLflow beside its metrics: recipe, preview of the views, loss curve, backbone."""

import json
from typing import TYPE_CHECKING

from ssl_ray.data.pick import some_images
from ssl_ray.data.preview import preview_grid
from ssl_ray.data.source import Dataset
from ssl_ray.recipe import Recipe
from ssl_ray.tracking import AnyTracker

if TYPE_CHECKING:
    from ssl_ray.training.result import RunResult

PREVIEW_IMAGES = 6


def at_start(tracker: AnyTracker, recipe: Recipe, dataset: Dataset) -> None:
    """The resolved recipe, and a picture of what the network will see."""
    import cv2

    tracker.log_text(json.dumps(recipe.to_json(), indent=2), "recipe.json")
    images = some_images(dataset.train, PREVIEW_IMAGES, recipe.training.seed)
    grid = preview_grid(recipe.views.build(), images, seed=recipe.training.seed)
    # Pixel by pixel, and without matplotlib, which would take longer to import than all this takes to draw.
    tracker.log_bytes(cv2.imencode(".png", grid[..., ::-1])[1].tobytes(), "preview.png")


def import_for_end() -> None:
    """Imports what `at_end` needs, which takes as long as all that it does."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401

    from ssl_ray.tracking.model import import_for_models

    import_for_models()


def at_end(tracker: AnyTracker, recipe: Recipe, result: "RunResult") -> None:
    """The loss curve of this session, and the final checkpoint's backbone as a model."""
    if result.history:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        axes.plot([s.step for s in result.history], [s.loss for s in result.history], color="tab:blue")
        axes.set(xlabel="step", ylabel="loss", title=f"{recipe.name}: training loss")
        axes.grid(alpha=0.3)
        for metric, label in (("val/knn_top1", "kNN top-1 %"), ("val/finetune_top1", "top-1 %")):
            judged = [e for e in result.summary.get("evaluations", []) if metric in e]
            if judged:
                right = axes.twinx()
                steps, values = [e["step"] for e in judged], [100 * e[metric] for e in judged]
                right.plot(steps, values, "o-", color="tab:orange")
                right.set_ylabel(label, color="tab:orange")
        tracker.log_figure(figure, "loss.png")
    if result.checkpoint is not None:
        log_backbone(tracker, recipe, result.checkpoint)


def log_backbone(tracker: AnyTracker, recipe: Recipe, checkpoint_uri: str) -> None:
    """A checkpoint's backbone as an MLflow model: normalised images (B, 3, H, W) in, pooled features (B, D) out.

    Of a `Classifier` all of it, as the model `classifier`: the probability of every class out.
    """
    import torch

    from ssl_ray.models.classifier import Answer, Classifier
    from ssl_ray.models.encoder import Encoder
    from ssl_ray.training.trained import load_algorithm

    algorithm, step = load_algorithm(recipe, checkpoint_uri)
    side = recipe.views.build().eval_size
    model: torch.nn.Module = Encoder(algorithm.backbone, algorithm.data_preprocessor)
    name = "backbone"
    if isinstance(algorithm, Classifier):
        model, name = Answer(algorithm), "classifier"
    tracker.log_model(model, torch.zeros(2, 3, side, side), name, step=step)
