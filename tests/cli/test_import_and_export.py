"""`ssl-ray import` and `ssl-ray export`, as typed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from ssl_ray import cli
from ssl_ray.experiments import load
from ssl_ray.models.encoder import pooled
from ssl_ray.paths import parse_value
from ssl_ray.training import checkpoint
from ssl_ray.training.folder import CHECKPOINTS, RunFolder
from tests.interop import checkpoints


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSL_RAY_STORAGE", raising=False)
    return tmp_path


@pytest.fixture
def ssl_ray(monkeypatch, capsys) -> Any:
    """Runs the console script in this process; gives its exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ssl-ray", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def moco_v2(elsewhere) -> str:
    torch.save(checkpoints.moco(2).content, elsewhere / "moco_v2_800ep.pth.tar")
    return "moco_v2_800ep.pth.tar"


@pytest.fixture
def run_folder(elsewhere) -> Any:
    """A run of SMALL moco with two checkpoints, as training leaves it. Gives the last backbone."""
    recipe = load("moco").SMALL
    folder = RunFolder.at("runs", "night")
    folder.begin(recipe, {})
    results = []
    for step in (1, 2):
        torch.manual_seed(step)
        algorithm = recipe.algorithm.build()
        name = f"checkpoint_{step:06}"
        (elsewhere / "runs/night" / name).mkdir()
        checkpoint.save(
            elsewhere / "runs/night" / name,
            algorithm=algorithm,
            optimizer=torch.optim.SGD(algorithm.parameters(), lr=0.1),
            recipe=recipe,
            next_step=step,
            evaluations=[],
        )
        results.append({"checkpoint_dir_name": name})
    (elsewhere / "runs/night" / CHECKPOINTS).write_text(json.dumps({"checkpoint_results": results}))
    return algorithm.backbone.eval()


def test_import_says_what_it_found_and_how_to_use_it(ssl_ray, moco_v2, elsewhere) -> None:
    status, out, err = ssl_ray("import", moco_v2)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "source: moco_v2_800ep.pth.tar: MoCo v2, facebookresearch/moco (told from its keys)"
    assert lines[1] == "backbone: ResNet(depth=18) (told from the shapes)"
    counts = {line[:11].strip(): int(line[11:].split()[0]) for line in lines[4:8]}
    ours = len(checkpoints.resnet().state_dict())
    assert counts == {"matched": ours, "missing": 0, "other shape": 0, "not used": ours + 4 + 4 + 2}
    path = elsewhere / "moco_v2_800ep.safetensors"
    assert lines[-1] == (
        "use it: ssl-ray pretrain moco --set 'algorithm.backbone=ResNet(depth=18)' "
        f"--set 'algorithm.pretrained={path}'"
    )
    assert path.is_file()


def test_import_as_json(ssl_ray, moco_v2, elsewhere) -> None:
    (elsewhere / "weights").mkdir()
    status, out, err = ssl_ray("import", moco_v2, "--out", "weights", "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["file"] == "weights/moco_v2_800ep.safetensors"
    assert Path(told["file"]).is_file()
    assert told["algorithm"] == "moco"
    assert told["architecture"] == {"type": "ssl_ray.models.backbones.resnet:ResNet", "depth": 18}
    assert set(told["matched"]) == set(checkpoints.resnet().state_dict())
    assert (told["missing"], told["misfits"], told["notes"]) == ([], {}, [])
    assert "encoder_q.fc.2.bias" in told["unexpected"]


def test_import_partial_warns(ssl_ray, elsewhere) -> None:
    state = checkpoints.resnet().state_dict()
    del state["layer4.1.conv2.weight"]
    torch.save(state, elsewhere / "x.pth")
    status, _, err = ssl_ray("import", "x.pth")
    assert status == 2
    assert "--partial" in err
    assert not (elsewhere / "x.safetensors").exists()
    status, _, err = ssl_ray("import", "x.pth", "--partial")
    assert status == 0
    assert "warning: untrained, because x.pth does not have them: layer4.1.conv2.weight" in err


def test_import_resizes_positions_and_says_so(ssl_ray, elsewhere) -> None:
    torch.save(checkpoints.mae().content, elsewhere / "mae.pth")
    given = "MAEViT(img_size=64, patch_size=8, embed_dim=192, depth=2, num_heads=3)"
    status, out, err = ssl_ray("import", "mae.pth", "--backbone", given)
    assert status == 0
    assert f"backbone: {given} (as given)" in out
    assert err == "warning: pos_embed: positions for 16 patches resized to 64\n"


def test_import_leaves_out_what_it_is_told_to(ssl_ray, elsewhere) -> None:
    state = checkpoints.resnet().state_dict()
    state |= {f"layer{i}.0.se.fc.weight": torch.zeros(1) for i in range(1, 5)}
    torch.save(state, elsewhere / "x.pth")
    status, out, err = ssl_ray("import", "x.pth")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "no place for layer*.*.se.fc.* (4, squeeze-and-excitation)" in err
    assert "--drop 'layer*.*.se.fc.*'" in err
    status, out, err = ssl_ray("import", "x.pth", "--drop", "layer*.*.se.fc.*", "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["dropped"] == [f"layer{i}.0.se.fc.weight" for i in range(1, 5)]
    assert told["source"].endswith(", without layer*.*.se.fc.*")
    assert "4 tensors left out as told" in " ".join(told["notes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no.pth"], "no.pth: no such file"),
        (["x.pth", "--algorithm=mocov3"], "algorithm: 'mocov3' is not known; did you mean 'moco_v3'?"),
        (["x.pth", "--backbone=ResNet(dept=50)"], "did you mean 'depth'?"),
        (["x.pth", "--backbone=mea"], "did you mean 'mae'?"),
        (["x.pth", "--backbone=moco"], "not the whole of ResNet(depth=50)"),
        (["x.pth", "--out=x.pth"], "neither a folder nor a .safetensors file"),
        (["x.pth", "--out=no/x.safetensors"], "'no' is no folder"),
        (
            ["y.pth"],
            "no checkpoint that is known here; at its top are features (2 tensors), classifier; save",
        ),
        (["x.pth", "--drop=layer5.*"], "drop: 'layer5.*' matches no tensor; did you mean 'layer*.*."),
    ],
)
def test_import_mistakes_are_one_line(ssl_ray, elsewhere, arguments, said) -> None:
    torch.save(checkpoints.resnet().state_dict(), elsewhere / "x.pth")
    unknown = {f"{name}.weight": torch.zeros(1) for name in ("features.0", "features.1", "classifier")}
    torch.save(unknown, elsewhere / "y.pth")
    status, out, err = ssl_ray("import", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("ssl-ray: ")
    assert err.count("\n") == 1
    assert said in err
    assert {path.name for path in elsewhere.iterdir()} == {"x.pth", "y.pth"}


def test_what_is_imported_can_be_exported(ssl_ray, moco_v2) -> None:
    assert ssl_ray("import", moco_v2, "--out", "ours.safetensors")[0] == 0
    status, out, err = ssl_ray("export", "ours.safetensors", "--format", "torchvision", "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["max_abs_diff"] < 1e-4
    assert told["file"] == "ours-torchvision.pth"
    model = torchvision.models.resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(torch.load(told["file"]))
    for key, value in checkpoints.resnet().state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
@pytest.mark.parametrize("source", ["night", "runs/night", "runs/night/checkpoint_000002"])
def test_runs_and_checkpoints_are_exported(ssl_ray, run_folder, source) -> None:
    status, out, err = ssl_ray("export", source, "--format", "torchscript", "--out", "x.ts")
    assert (status, err) == (0, "")
    assert "images: 28 x 28 px, normalised with mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]" in out
    assert "moco, step 2 of " in out
    assert "loaded back: features of random images differ by at most " in out
    images = torch.randn(4, 3, 28, 28)
    with torch.no_grad():
        expected = pooled(run_folder, images)
        torch.testing.assert_close(torch.jit.load("x.ts")(images), expected, rtol=1e-5, atol=1e-5)


def test_the_architecture_that_is_printed_can_be_typed(ssl_ray, run_folder) -> None:
    _, out, _ = ssl_ray("export", "night", "--format", "safetensors")
    (line,) = [line for line in out.splitlines() if line.startswith("backbone: ")]
    assert parse_value(line.removeprefix("backbone: ")) == load("moco").SMALL.algorithm.kwargs["backbone"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["night", "--format=torchvison"], "did you mean 'torchvision'?"),
        (["night", "--format=torchvision"], "formats that can: safetensors, onnx, torchscript"),
        (["nihgt", "--format=timm"], "'nihgt' is no run"),
        (["x.pth", "--format=timm"], "`ssl-ray import x.pth` makes one of it"),
        (["night", "--format=torchscript", "--out=no/x.ts"], "must be a file in a folder that exists"),
    ],
)
def test_export_mistakes_are_one_line(ssl_ray, run_folder, elsewhere, arguments, said) -> None:
    torch.save({"a": torch.zeros(1)}, elsewhere / "x.pth")
    status, out, err = ssl_ray("export", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("ssl-ray: ")
    assert err.count("\n") == 1
    assert said in err
    assert {path.name for path in elsewhere.iterdir()} == {"x.pth", "runs"}
