import logging
import warnings
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensor
from torch.optim import Adadelta

from ssl_ray import experiments
from ssl_ray.data.source import DatasetInfo
from ssl_ray.errors import UserError
from ssl_ray.models import ResNet
from ssl_ray.recipe import Recipe, override
from ssl_ray.resolve import resolve
from ssl_ray.spec import Spec
from ssl_ray.training.preflight import preflight

INFO = {
    "SMALL": DatasetInfo("small", 7000, (28, 28), 10, "digest"),
    "PAPER": DatasetInfo("large", 1_281_167, (400, 500), 1000, "digest"),
}


def recipe(name: str, scale: str) -> Recipe:
    return resolve(experiments.load_recipe(name, scale.lower()).recipe, INFO[scale]).recipe


@pytest.mark.parametrize("scale", INFO)
@pytest.mark.parametrize("name", experiments.names())
def test_every_recipe_can_be_built_and_run(name: str, scale: str) -> None:
    """Large ones without memory, small ones as they are, which is quicker."""
    seen: set[type] = set()

    def look(module: torch.nn.Module, inputs: tuple[object, ...]) -> None:
        seen.update(type(x) for x in inputs if isinstance(x, torch.Tensor))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        preflight(recipe(name, scale))
    finally:
        handle.remove()
    assert seen == {FakeTensor if scale == "PAPER" else torch.Tensor}


@pytest.mark.parametrize(
    ("name", "path", "value", "said"),
    [
        (
            "moco",
            "algorithm.backbone.depth",
            99,
            "algorithm.backbone.depth = 99: should be 18, 34, 50, 101 or 152",
        ),
        (
            "mae",
            "algorithm.backbone.num_heads",
            5,
            "algorithm.backbone.num_heads: 5 does not divide the width 96",
        ),
        ("moco", "views.size", -3, "views.size = -3: "),
        ("simclr", "algorithm.neck.in_channels", 77, "algorithm: its parts do not fit: mat1 and mat2 shapes"),
        (
            "moco",
            "optimization.optimizer.weight_decay",
            -1.0,
            "optimization.optimizer.weight_decay = -1.0: should be greater than or equal to 0",
        ),
        (
            "moco",
            "optimization.optimizer",
            Spec(Adadelta, rho=2.0),
            "optimization.optimizer: Invalid rho value",
        ),
        ("swav", "views.small_min_scale", 0.7, "views.small_min_scale: 0.7 is more than small_max_scale 0.6"),
        (
            "moco",
            "views.num_views",
            1,
            "algorithm: its parts do not fit: MoCo needs 2 views of an image, gets 1; set views.num_views",
        ),
        ("byol", "views.min_sigma", 3.0, "views.min_sigma: 3 is more than max_sigma 2"),
    ],
)
def test_mistakes_name_their_part(
    name: str, path: str, value: object, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError) as error:
        preflight(override(recipe(name, "SMALL"), path, value))
    assert str(error.value).startswith(said)
    assert not [r for r in caplog.records if r.levelno < logging.CRITICAL]


def test_a_module_that_asks_for_values_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    forward = ResNet.forward

    def curious(self: ResNet, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(float(images.mean()))  # raises for a tensor without memory
        return forward(self, images)

    monkeypatch.setattr(ResNet, "forward", curious)
    preflight(recipe("simclr", "SMALL"))
    assert len(seen) == 1


def test_pretrained_weights_must_be_there_and_fit(tmp_path: Path) -> None:
    def judge(path: Path) -> None:
        preflight(override(recipe("simclr", "SMALL"), "algorithm.pretrained", str(path)))

    backbone = recipe("simclr", "SMALL").algorithm.kwargs["backbone"]
    torch.save(backbone.build().state_dict(), tmp_path / "fits.pth")
    torch.save(backbone.replace(width=8).build().state_dict(), tmp_path / "narrow.pth")
    (tmp_path / "text.pth").write_text("no weights")

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as torch's when weights are loaded into tensors without memory
        judge(tmp_path / "fits.pth")
    for name, said in (
        ("none.pth", "no such file"),
        ("text.pth", "not a file of plain tensors"),
        ("narrow.pth", "shapes differ from ResNet's"),
    ):
        with pytest.raises(UserError) as error:
            judge(tmp_path / name)
        assert str(error.value).startswith(f"algorithm.pretrained: {tmp_path / name}: {said}")
        assert "\n" not in str(error.value)
