import json
import pickle
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field
from torch import nn
from torch.optim import SGD

from ssl_ray import names
from ssl_ray.errors import UserError
from ssl_ray.spec import Spec


class Backbone(nn.Module):
    def __init__(
        self,
        depth: int = 50,
        stem: Literal["imagenet", "small"] = "imagenet",
        scale: float = 1.0,
        indices: Sequence[int] = (4,),
        widths: tuple[int, ...] | None = None,
        bias: bool = False,
        rate: Annotated[float, Field(ge=0, le=1)] = 0.5,
    ) -> None:
        super().__init__()
        self.arguments = (depth, stem, scale, indices, widths, bias, rate)


class Head(nn.Module):
    def __init__(self, temperature: float, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.temperature, self.loss = temperature, loss


class Algorithm(nn.Module):
    def __init__(
        self, backbone: Backbone, head: nn.Module, parts: Sequence[nn.Module] = (), **more: object
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.parts, self.more = backbone, head, parts, more


def make_backbone(depth: int = 18) -> Backbone:
    return Backbone(depth)


def make_number() -> int:
    return 3


def never(value: int = 0) -> None:
    raise AssertionError("a target was called")


NESTED = Spec(
    Algorithm,
    backbone=Spec(Backbone, depth=18, indices=[3, 4], widths=[8, 16]),
    head=Spec(Head, temperature=0.1, loss=Spec(nn.CrossEntropyLoss)),
    parts=[Spec(Head, temperature=1), Spec(Backbone)],
    extra={"inner": Spec(Head, temperature=2.0), "n": 1},
)


def test_builds_bottom_up_in_lists_and_dicts_too() -> None:
    built = NESTED.build()
    assert built.backbone.arguments[:2] == (18, "imagenet")
    assert isinstance(built.head.loss, nn.CrossEntropyLoss)
    assert [type(part) for part in built.parts] == [Head, Backbone]
    assert built.more["extra"]["inner"].temperature == 2.0
    assert NESTED.build().backbone is not built.backbone


def test_build_takes_late_arguments_and_names_missing_ones() -> None:
    parameter = nn.Parameter(nn.Linear(1, 1).weight.detach())
    optimizer = Spec(SGD, momentum=0.9).build(params=[parameter], lr=0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["momentum"] == 0.9
    with pytest.raises(UserError, match="Head: missing argument 'temperature'"):
        Spec(Head).build()


@pytest.mark.parametrize("spec", [NESTED, Spec(SGD, momentum=0.9), Spec(make_backbone, depth=3)])
def test_round_trips(spec: Spec) -> None:
    written = json.dumps(spec.to_json())
    assert Spec.from_json(json.loads(written)) == spec
    assert json.dumps(Spec.from_json(json.loads(written)).to_json()) == written
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_json_names_the_import_path() -> None:
    assert Spec(Head, temperature=0.5).to_json() == {"type": f"{__name__}:Head", "temperature": 0.5}


def test_compares_by_value() -> None:
    assert Spec(Backbone, depth=18) == Spec(Backbone, depth=18)
    assert Spec(Backbone, indices=(1, 2)) == Spec(Backbone, indices=[1, 2])
    assert Spec(Backbone, scale=1) == Spec(Backbone, scale=1.0)
    assert Spec(Backbone, depth=18) != Spec(Backbone, depth=34)
    assert Spec(Backbone, depth=50) != Spec(
        Backbone
    )  # what is written differs, though what is built does not
    assert Spec(Backbone, depth=18) != Spec(make_backbone, depth=18)
    assert Spec(Head, temperature=1.0) != "Head(temperature=1.0)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dpth": 18}, r"Backbone: unknown argument 'dpth'; did you mean 'depth'\?"),
        ({"depth": "18"}, r"Backbone\.depth = '18': should be a valid integer"),
        ({"depth": 18.0}, r"Backbone\.depth = 18\.0: should be a valid integer"),
        ({"depth": True}, r"Backbone\.depth = True: should be a valid integer"),
        ({"bias": 1}, r"Backbone\.bias = 1: should be a valid boolean"),
        ({"stem": "smal"}, r"Backbone\.stem = 'smal': should be 'imagenet' or 'small'"),
        ({"indices": [1, "a"]}, r"Backbone\.indices = \[1, 'a'\]: should be a valid integer"),
        ({"widths": 3}, r"Backbone\.widths = 3: should be a valid tuple"),
        ({"rate": 1.5}, r"Backbone\.rate = 1\.5: should be less than or equal to 1"),
        ({"scale": float("nan")}, r"Backbone\.scale = nan: should be a finite number"),
        ({"scale": Spec(Backbone)}, r"Backbone\.scale = Backbone\(\): should be a valid number"),
        ({"type": 3}, r"Backbone\.type = 3: a Spec holds plain values"),
        ({"scale": object()}, r"a Spec holds plain values and other Specs"),
    ],
)
def test_refuses_wrong_arguments_in_one_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Spec(Backbone, **arguments)
    assert "\n" not in str(caught.value)


def test_a_spec_stands_for_what_it_builds() -> None:
    head = Spec(Head, temperature=1.0)
    Spec(Algorithm, backbone=Spec(make_backbone), head=head)  # a function says what it returns
    for wrong in (head, Spec(make_number), 3, "Backbone", None):
        with pytest.raises(UserError, match=r"backbone = .*: should be a Spec of Backbone"):
            Spec(Algorithm, backbone=wrong, head=head)
    with pytest.raises(UserError, match="a Spec holds plain values"):
        Spec(Algorithm, backbone=Backbone(), head=head)


def test_refuses_what_is_no_call() -> None:
    for target in (3, "ResNet", nn, Backbone().forward):
        with pytest.raises(UserError, match="neither a class nor a function"):
            Spec(target)  # type: ignore[arg-type]


def test_reading_json_calls_nothing() -> None:
    spec = Spec.from_json({"type": f"{__name__}:never", "value": 1})
    assert spec.name == "never"
    with pytest.raises(AssertionError, match="was called"):
        spec.build()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ResNt", r"no built-in is called 'ResNt'; did you mean 'ResNet'\?"),
        ("no_such_module:Thing", "cannot import 'no_such_module:Thing'"),
        ("torch.nn:Lineer", "cannot import 'torch.nn:Lineer'"),
        ("math:pi", "'math:pi' is neither a class nor a function but a float"),
        ("torch.nn.", "cannot import"),
    ],
)
def test_find_says_what_it_cannot_find(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        names.find(name)


def test_find_takes_paths_and_bare_names() -> None:
    assert names.find("torch.nn:Linear") is names.find("torch.nn.Linear") is nn.Linear
    assert names.find("SGD") is SGD
    for name in (
        "ResNet",
        "NonLinearNeck",
        "ContrastiveHead",
        "MoCo",
        "SimCLR",
        "MAE",
        "LARS",
        "moco_v2_views",
    ):
        found = names.find(name)
        assert found.__name__ == name
        assert names.find(names.import_path(found)) is found


def test_a_bare_name_means_one_thing() -> None:
    """Public classes and functions have distinct names over all packages that bare names are looked up in."""
    owners = Counter(
        name
        for package in Path(names.__file__).with_name("models").iterdir()
        if package.is_dir()
        for path in package.glob("[!_]*.py")
        for name in re.findall(r"^(?:class|def) ([A-Za-z]\w*)", path.read_text(), re.MULTILINE)
    )
    assert owners["ResNet"] == 1
    assert set(owners) <= names.builtin().keys()
    assert not [name for name, count in owners.items() if count > 1]


def test_a_local_class_has_no_import_path() -> None:
    class Local:
        pass

    with pytest.raises(UserError, match="Local has no import path"):
        Spec(Local).to_json()
