import json

import cv2
import numpy as np

from ssl_ray.data.pick import some_images
from ssl_ray.data.preview import preview_grid
from ssl_ray.data.source import open_dataset
from ssl_ray.experiments import load_recipe
from ssl_ray.recipe import Recipe
from ssl_ray.tracking import NoTracker
from ssl_ray.training import artifacts


class Kept(NoTracker):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def log_text(self, text: str, artifact_file: str) -> None:
        self.files[artifact_file] = text.encode()

    def log_bytes(self, content: bytes, artifact_file: str) -> None:
        self.files[artifact_file] = content


def test_a_run_begins_with_its_recipe_and_a_picture_of_its_views() -> None:
    recipe, dataset, kept = load_recipe("simclr", "small").recipe, open_dataset("digits"), Kept()
    artifacts.at_start(kept, recipe, dataset)
    assert kept.files.keys() == {"recipe.json", "preview.png"}
    assert Recipe.from_json(json.loads(kept.files["recipe.json"])) == recipe
    picture = cv2.imdecode(np.frombuffer(kept.files["preview.png"], np.uint8), cv2.IMREAD_COLOR_RGB)
    images = some_images(dataset.train, artifacts.PREVIEW_IMAGES, seed=0)
    assert np.array_equal(picture, preview_grid(recipe.views.build(), images, seed=0))
