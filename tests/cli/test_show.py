import json
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_ray import cli
from ssl_ray.experiments import load
from ssl_ray.recipe import Recipe, overrides, parse_settings


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The console script in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["ssl-ray", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def shown(text: str) -> dict[str, str]:
    lines = [line.partition("  # ")[0] for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split(" = ", 1) for line in lines)


def test_shows_every_value_and_where_it_is_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (
        "--set",
        "training.global_batch_size=128",
        "--set",
        "algorithm.backbone=ResNet(depth=34, width=8)",
    )
    assert run(monkeypatch, "show", "moco", *settings) == 0
    out = capsys.readouterr().out
    lr = load("moco").SMALL.optimization.base_lr / 2
    assert f"optimization.lr = {lr!r}  # base_lr" in out
    values = shown(out)
    assert values["algorithm.backbone"] == "ResNet"
    assert values["algorithm.backbone.depth"] == "34"
    assert values["algorithm.backbone.stem"] == "imagenet"  # the default: this is another backbone
    assert "optimization.optimizer.lr" not in values


def test_what_it_shows_can_be_set_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "show", "moco", "--json")
    recipe = Recipe.from_json(json.loads(capsys.readouterr().out))
    run(monkeypatch, "show", "moco")
    values = shown(capsys.readouterr().out)
    plain = [
        f"{path}={value}"
        for path, value in values.items()
        if not any(p.startswith(f"{path}.") for p in values)
    ]
    plain = [text for text in plain if not text.startswith("algorithm.head.loss=")]
    assert len(plain) > 60
    assert overrides(recipe, parse_settings(plain)) == recipe


def test_json_is_a_recipe_that_show_and_pretrain_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "show", "mae", "--json") == 0
    first = capsys.readouterr().out
    (tmp_path / "recipe.json").write_text(first)
    assert run(monkeypatch, "show", str(tmp_path / "recipe.json"), "--json") == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mooc",), "ssl-ray: no experiment is called 'mooc'; did you mean 'moco'?"),
        (
            ("moco", "--set", "training.epoch=3"),
            "training.epoch: there is no 'epoch'; did you mean 'epochs'?",
        ),
        (("moco", "--set", "training.epochs=x"), "training.epochs = 'x': should be a valid integer"),
        (("moco", "--set", "training.global_batch_size=99999"), "is more than the"),
        (("moco", "--data", "no/such/folder"), "no/such/folder"),
    ],
)
def test_a_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert run(monkeypatch, "show", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ssl-ray: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["moco"] == {
        "name": "moco",
        "paper": "arXiv 2003.04297 (2020)",
        "backbone": "ResNet",
        "neck": "NonLinearNeck",
        "head": "ContrastiveHead",
        "loss": "CrossEntropyLoss",
        "memory": "queue of 65536",
        "published result": "67.5 linear (200 epochs)",
    }
    assert {name: row["memory"] for name, row in rows.items() if row["memory"]} == {
        "densecl": "queue of 65536",
        "moco": "queue of 65536",
        "moco:PAPER_V1": "queue of 65536",
        "npid": "SimpleMemory",
        "odc": "ODCMemory",
        "swav": "queue of 3840",
    }
    assert all(row["loss"] for row in rows.values()), "MoCoV3's head makes its own"
    assert run(monkeypatch, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 2  # title, header
    column = lines[1].index("backbone")
    assert {line[column:].split()[0] for line in lines[2:]} == {row["backbone"] for row in rows.values()}


@pytest.mark.process
def test_a_recipe_file_that_fails_is_one_line_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "broken_recipes.py").write_text("x = 1\n1 / 0\n")
    program = Path(sys.executable).with_name("ssl-ray")
    command = [program, "show", str(tmp_path / "broken_recipes.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    place = tmp_path / "broken_recipes.py"
    assert done.stderr == f"ssl-ray: {place}, line 2: ZeroDivisionError: division by zero\n"
