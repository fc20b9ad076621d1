"""Too few images at once are refused before anything starts, by the name of the setting; more are not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_ray import experiments
from ssl_ray.data.source import DatasetInfo
from ssl_ray.errors import UserError
from ssl_ray.models import ContrastiveHead, LinearNeck, ResNet, SimCLR
from ssl_ray.recipe import Recipe, overrides
from ssl_ray.resolve import resolve
from ssl_ray.spec import Spec
from ssl_ray.training.preflight import preflight
from ssl_ray.training.rows import Share, shares
from tests import small

INFO = DatasetInfo("small", 7000, (28, 28), 10, "digest")
ONE = "training.global_batch_size 1"


def recipe(name: str, batch: int, **settings: Any) -> Recipe:
    """SMALL, resolved; `sync_bn=False` stands for training.sync_bn, `split_bn=2` for algorithm.split_bn."""
    paths = {"split_bn": "algorithm.split_bn"}
    named = {paths.get(key, f"training.{key}"): value for key, value in settings.items()}
    chosen = overrides(experiments.load(name).SMALL, {"training.global_batch_size": batch} | named)
    return resolve(chosen, INFO).recipe


def teaches(name: str) -> bool:
    """Whether a loss of one image can be taken, and says to the backbone which way to go."""
    chosen = small.recipe(name, 1)
    if "split_bn" in chosen.algorithm.kwargs:
        chosen = small.recipe(name, 1, {"algorithm.split_bn": 1})
    torch.manual_seed(0)
    algorithm = chosen.algorithm.build()
    views, samples = small.batch(chosen, 1)
    try:
        loss = algorithm(views, samples, mode="loss").loss
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return False
    loss.backward()
    return any(p.grad is not None and p.grad.abs().max() > 0 for p in algorithm.backbone.parameters())


@pytest.mark.parametrize("name", experiments.names())
def test_one_image_is_refused_where_it_teaches_nothing(name: str) -> None:
    one = recipe(name, 1, **({"split_bn": 1} if name in ("moco", "densecl") else {}))
    # Of one image SwAV has a gradient: to where every prototype is as likely as any other.
    if teaches(name) and name != "swav":
        preflight(one)
    else:
        with pytest.raises(UserError, match=f"^algorithm.*{ONE}.*; raise training.global_batch_size$"):
            preflight(one)


def test_the_codes_of_one_image_say_nothing() -> None:
    loss = small.recipe("swav", 16).algorithm.build().head.loss
    codes = loss.codes(torch.randn(1, 2, 12, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(codes, torch.full_like(codes, 1 / 12))


@pytest.mark.parametrize(
    ("name", "batch", "settings", "sizes", "said"),
    [
        # Losses among the rows of all workers.
        ("simclr", 1, {}, (1,), f"SimCLR needs 2 images or more at once, and {ONE} holds 1; raise"),
        ("simclr", 2, {"accumulate": 2}, (1,), "2 in 2 micro-batches holds 1; raise .* or lower training.accumulate$"),
        ("simclr", 4, {"max_rows": 1}, (1, 4), "4 in 4 micro-batches holds 1; .* or raise training.max_rows 1$"),
        ("moco_v3", 4, {"accumulate": 4}, (1,), "MoCoV3Head needs 2 images or more at once"),
        ("swav", 4, {"accumulate": 4}, (1,), "SwAVLoss needs 2 images or more at once"),
        ("barlow_twins", 1, {}, (1,), "LatentCrossCorrelationHead needs 2 images or more at once"),
        # Batch norm of a worker's rows, in the smallest share of a group that grows.
        ("byol", 1, {}, (1,), rf"batch norm neck\.bn0 would see one value per channel.* {ONE} a worker gets 1 image"),
        ("byol", 8, {"sync_bn": False}, (2, 4, 8), "on 8 workers .* fewer --workers or set training.sync_bn=true$"),
        ("simsiam", 8, {"accumulate": 4, "sync_bn": False}, (2,), "8 in 4 micro-batches on 2 workers a worker gets 1"),
        ("moco", 1, {"split_bn": 1}, (1,), r"batch norm neck\.bn0 would see one value"),
        # Batch norm in groups of a worker's rows.
        ("moco", 8, {}, (1,), r"teacher\.neck\.bn0 .* 8 images at once, 1 in each of algorithm\.split_bn 8 groups"),
        ("moco", 8, {}, (1,), r"; lower algorithm\.split_bn or raise training\.global_batch_size$"),
        ("moco", 12, {}, (1,), r"^algorithm\.split_bn: 8 groups .*12, which is 12 images; set it to a divisor of 12"),
        ("densecl", 64, {}, (2, 4, 16), "^algorithm.split_bn: 8 groups .*64 on 16 workers, which is 4 images"),
    ],
)  # fmt: skip
def test_the_setting_is_named(
    name: str, batch: int, settings: dict[str, Any], sizes: tuple[int, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        preflight(recipe(name, batch, **settings), sizes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "batch", "settings", "sizes"),
    [
        ("simclr", 2, {}, (1,)),
        ("simclr", 8, {}, (2, 8)),  # an image on each worker, compared with those of the others
        ("byol", 8, {}, (8,)),  # and normalised with them
        ("barlow_twins", 8, {"sync_bn": False, "accumulate": 2}, (2,)),
        ("moco", 16, {}, (1,)),
        ("moco", 64, {"split_bn": 32}, (1,)),  # many groups, none of them of one image
        ("moco", 72, {"split_bn": 12}, (1, 2, 3)),
        ("mae", 1, {}, (1,)),
    ],
)
def test_enough_is_enough(name: str, batch: int, settings: dict[str, Any], sizes: tuple[int, ...]) -> None:
    preflight(recipe(name, batch, **settings), sizes)


def test_shares_are_what_workers_take_at_once() -> None:
    found = shares(recipe("simclr", 24, accumulate=2, max_rows=3), (1, 2, 4))
    assert found == [Share(3, 1, 8), Share(3, 2, 4), Share(3, 4, 2)]
    assert shares(recipe("simclr", 24, accumulate=2), (1, 2, 4))[0] == Share(3, 4, 2)


class OwnLoss(nn.Module):
    """A user's: it ranks the images of a batch."""

    min_rows = 5

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, target)


class Curious(ResNet):
    """A user's: it cannot be tried without numbers."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert float(images.abs().max()) < 10
        return super().forward(images)


def own(batch: int, backbone: type[ResNet] = ResNet, neck: Spec | None = None) -> Recipe:
    algorithm = Spec(
        SimCLR,
        backbone=Spec(backbone, depth=18, width=4, stem="small"),
        neck=neck or Spec(LinearNeck, in_channels=32, out_channels=8),
        head=Spec(ContrastiveHead, loss=Spec(OwnLoss)),
    )
    chosen = overrides(experiments.load("simclr").SMALL, {"algorithm": algorithm})
    return resolve(overrides(chosen, {"training.global_batch_size": batch}), INFO).recipe


@pytest.mark.parametrize("backbone", [ResNet, Curious])
def test_a_users_module_says_what_it_needs(backbone: type[ResNet]) -> None:
    with pytest.raises(UserError, match=r"OwnLoss needs 5 images or more at once, and .* 4 holds 4; raise"):
        preflight(own(4, backbone))
    preflight(own(5, backbone))


def test_a_users_batch_norm_is_watched_too() -> None:
    class Norm(LinearNeck):
        def __init__(self, in_channels: int, out_channels: int) -> None:
            super().__init__(in_channels, out_channels)
            self.norm = nn.BatchNorm1d(out_channels)

        def forward(self, features: Any) -> Tensor:
            projection: Tensor = self.norm(super().forward(features)[::4])
            return projection

    globals()["Norm"] = Norm
    Norm.__qualname__ = "Norm"
    chosen = recipe("byol", 2)
    neck = Spec(Norm, in_channels=128, out_channels=chosen.algorithm.kwargs["neck"].kwargs["out_channels"])
    with pytest.raises(UserError, match=r"batch norm neck\.norm would see one value per channel"):
        preflight(overrides(chosen, {"algorithm.neck": neck}))
