from typing import Any

import pytest
from torch import nn

from ssl_ray.errors import UserError
from ssl_ray.paths import format_value, parse_value, replace_at, value_at, walk
from ssl_ray.spec import Spec
from tests.test_spec import NESTED, Backbone, Head


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", 18),
        ("-3", -3),
        ("1e-3", 0.001),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ("(0.9, 0.95)", (0.9, 0.95)),
        ("{'a': 1}", {"a": 1}),
        ("cosine", "cosine"),
        ("'18'", "18"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("two words", "two words"),
        ("", ""),
    ],
)
def test_parses_values(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_parses_calls() -> None:
    linear = Spec(nn.Linear, in_features=2, out_features=3)
    assert parse_value("torch.nn.Linear(in_features=2, out_features=3)") == linear
    assert parse_value("[torch.nn.ReLU(), torch.nn.Linear(in_features=2, out_features=3)]") == [
        Spec(nn.ReLU),
        linear,
    ]
    nested = parse_value(
        "MoCo(backbone=ResNet(depth=18, stem=small), neck=LinearNeck(in_channels=512, out_channels=8))"
    )
    assert nested.kwargs["backbone"].kwargs == {"depth": 18, "stem": "small"}
    assert nested.kwargs["neck"].kwargs == {"in_channels": 512, "out_channels": 8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ResNet(18)", "write a call as"),
        ("ResNet(depth=)", "write a call as"),
        ("ResNet(depth=1+1)", "write a call as"),
        ("__import__('os')", "write a call as"),
        ("ResNet(dpth=18)", "did you mean 'depth'"),
        ("Resnet(depth=18)", "did you mean 'ResNet'"),
        ("os.system(command=true)", "'os.system' is neither a class nor a function"),
    ],
)
def test_refuses_calls_it_cannot_read(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_value(text)


@pytest.mark.parametrize(
    "value",
    [
        0,
        1e-4,
        1.5,
        True,
        None,
        "cosine",
        "18",
        "true",
        "",
        "a, b",
        "it's",
        "2003.04297",
        [1, 2],
        ["a", "1"],
        {"a": 1},
    ],
)
def test_formats_what_it_can_parse(value: Any) -> None:
    parsed = parse_value(format_value(value))
    assert parsed == value
    assert type(parsed) is type(value)


def test_replaces_deep_inside_and_leaves_the_original() -> None:
    before = NESTED.to_json()
    changed = replace_at(NESTED, "head.loss.label_smoothing", 0.1)
    changed = replace_at(changed, "parts.0.temperature", 3)
    changed = replace_at(changed, "extra.inner.temperature", 4.0)
    assert NESTED.to_json() == before
    assert changed.kwargs["head"].kwargs["loss"] == Spec(nn.CrossEntropyLoss, label_smoothing=0.1)
    assert changed.kwargs["parts"][0] == Spec(Head, temperature=3.0)
    assert changed.kwargs["extra"] == {"inner": Spec(Head, temperature=4.0), "n": 1}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "head.temprature",
            1.0,
            r"^head\.temprature: there is no 'temprature'; did you mean 'temperature'\?$",
        ),
        ("head.temperature", "x", r"^head\.temperature = 'x': should be a valid number$"),
        ("backbone.depth.x", 1, r"^backbone\.depth\.x: there is no 'x' \(backbone\.depth is 18\)"),
        ("parts.7", Spec(Backbone), r"^parts\.7: there is no '7'; allowed: 0, 1$"),
        ("backbone", Spec(Head, temperature=1.0), r"^backbone = .* Spec of Backbone$"),
    ],
)
def test_names_the_path_of_a_mistake(path: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace_at(NESTED, path, value)


def test_every_path_that_walk_names_can_be_set() -> None:
    paths = dict(walk(NESTED))
    assert paths["backbone.stem"] == "imagenet"  # nobody gave it
    assert paths["parts.1"] == Spec(Backbone)
    for path, value in paths.items():
        if path.endswith(
            ("weight", "size_average", "reduce")
        ):  # CrossEntropyLoss: tensors and deprecated flags
            continue
        assert dict(walk(replace_at(NESTED, path, value))).keys() == paths.keys()


def test_the_value_at_a_path() -> None:
    linear = Spec(nn.Linear, in_features=2)
    assert value_at({"a": [linear]}, "a.0.in_features") == 2
    assert value_at(linear, "bias") is True, "its default"
    for path in ("out_features", "nothing", "in_features.nothing"):  # required and not given; not there
        assert value_at(linear, path) is None
