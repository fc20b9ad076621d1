"""What comes from a stranger - a model file, a checkpoint, a recipe - is read, never run."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_ray.errors import UserError
from ssl_ray.names import find_in_file
from ssl_ray.spec import Spec
from tests.runs import run
from tests.small import recipe

PROOF = "proof-that-code-ran"


class Evil:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (PROOF,)


def evil_bytes() -> bytes:
    """As `torch.save` writes it."""
    stream = io.BytesIO()
    torch.save({"algorithm": {"a": torch.zeros(2)}, "state_dict": Evil(), "next_step": 3}, stream)
    return stream.getvalue()


def evil_checkpoint(folder: Path) -> Path:
    """A folder that looks like a checkpoint of ours."""
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(recipe("moco", 32).to_json()))
    (folder / "checkpoint.pt").write_bytes(evil_bytes())
    return folder


def refused(done: "subprocess.CompletedProcess[str]", where: Path) -> str:
    """The one line with which a command refused; nothing ran."""
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("ssl-ray: ")
    assert not (where / PROOF).exists()
    return line


def test_the_pickle_of_these_tests_does_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.load(io.BytesIO(evil_bytes()), weights_only=False)
    assert Path(PROOF).exists()


@pytest.mark.process
@pytest.mark.parametrize("verb", ["evaluate", "embed", "export"])
def test_a_checkpoint_that_holds_code_is_refused(tmp_path: Path, verb: str) -> None:
    evil_checkpoint(tmp_path / "evil")
    more = {
        "evaluate": ["--data=digits"],
        "embed": ["--data=digits", "--out=vectors"],
        "export": ["--format=timm"],
    }[verb]
    line = refused(run(tmp_path, verb, "evil", *more), tmp_path)
    assert "others are not read because they can run code" in line


def _compressed() -> bytes:
    """A zip of torch's form whose one tensor is compressed, as in a small file that unpacks to a very large one."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("archive/data.pkl", pickle.dumps({}))
        parts.writestr("archive/version", "3\n")
        parts.writestr("archive/data/0", bytes(1 << 16))
    return stream.getvalue()


def _safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


FILES = {
    "evil.pth": (evil_bytes(), "others are not read because they can run code"),
    "plain pickle.pth": (pickle.dumps(Evil()), "others are not read because they can run code"),
    "compressed.pth": (_compressed(), "its parts are compressed, as torch never writes them"),
    "long header.safetensors": (_safetensors(b"{}", 100), "cannot be read"),
    "no header.safetensors": (b"", "cannot be read"),
    "more than it holds.safetensors": (
        _safetensors(b'{"a":{"dtype":"F32","shape":[10,10],"data_offsets":[0,400]}}'),
        "cannot be read",
    ),
    "overlap.safetensors": (
        _safetensors(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[-8,8]}}') + bytes(16),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_model_file_ends_in_one_line(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_ray.interop.weights import read_state_dict

    monkeypatch.chdir(tmp_path)
    content, message = FILES[name]
    Path(name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_state_dict(name)
    assert "\n" not in str(caught.value)
    assert not Path(PROOF).exists()


@pytest.mark.process
def test_import_refuses_a_pickle_with_code(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(evil_bytes())
    assert "they can run code" in refused(run(tmp_path, "import", "evil.pth"), tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


# Secrets


@pytest.mark.parametrize(
    "uri",
    ["s3://KEY:planted@bucket/a.pth", "https://host/a.pth?token=planted", "http://planted@host/a.pth"],
)
def test_a_recipe_that_holds_credentials_is_refused_without_showing_them(uri: str) -> None:
    with pytest.raises(UserError, match=r"^algorithm.pretrained: .*holds credentials") as caught:
        recipe("moco", 32, {"algorithm.pretrained": uri})
    assert "planted" not in str(caught.value)


# Recipes

HARMFUL = [
    "os:system",
    "os.system",
    "subprocess:run",
    "subprocess:Popen",
    "builtins:eval",
    "builtins:exec",
    "shutil:rmtree",
    "pickle:Unpickler",
    "antigravity:fly",
    "importlib:import_module",
    "pip.__main__:main",
    "torch:load",
    "torch.hub:load",
    "torch.utils.cpp_extension:load",
    "torch.utils.cpp_extension:subprocess.run",  # by way of a module that imports it
    "numpy:load",
    "ssl_ray.training.pretrain:pretrain",
    "ssl_ray.experiments:load",
    "ssl_ray.training.folder:RunFolder",
    "ssl_ray.spec:Spec.build",
]


@pytest.mark.parametrize("name", HARMFUL)
def test_what_no_recipe_is_made_of_is_refused(name: str) -> None:
    with pytest.raises(
        UserError, match=r"is nothing that a recipe is made of|neither a class nor a function|cannot import"
    ):
        find_in_file(name)
    assert "antigravity" not in sys.modules
    assert "pip.__main__" not in sys.modules


@pytest.mark.parametrize(
    "name",
    [
        "ResNet",
        "ssl_ray.models.backbones.resnet:ResNet",
        "torch.nn:Linear",
        "torch.nn.modules.linear.Linear",
        "torch.optim:Adam",
        "ssl_ray.data.views:simclr_views",
        "tests.small:recipe",  # code of one's own
    ],
)
def test_what_a_recipe_is_made_of_is_found(name: str) -> None:
    assert callable(find_in_file(name))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("algorithm",), "algorithm: 'os:system'"),
        (("algorithm", "backbone"), "algorithm.backbone: 'os:system'"),
        (("algorithm", "head", "loss"), "algorithm.head.loss: 'os:system'"),
        (("views",), "views: 'os:system'"),
        (("optimization", "optimizer"), "optimization.optimizer: 'os:system'"),
    ],
)
def test_the_message_says_where_it_stands(path: tuple[str, ...], message: str) -> None:
    from ssl_ray.recipe import Recipe

    data = recipe("moco", 32).to_json()
    place = data
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = {"type": "os:system", "command": f"mkdir {PROOF}"}
    with pytest.raises(UserError, match=message):
        Recipe.from_json(data)


@pytest.mark.process
@pytest.mark.parametrize("verb", ["show", "pretrain"])
def test_an_evil_recipe_is_refused_in_one_line(tmp_path: Path, verb: str) -> None:
    data = recipe("moco", 32).to_json()
    data["algorithm"]["backbone"] = {"type": "subprocess:check_call", "args": f"mkdir {PROOF}", "shell": True}
    (tmp_path / "evil.json").write_text(json.dumps(data))
    line = refused(run(tmp_path, verb, "evil.json"), tmp_path)
    assert "algorithm.backbone: 'subprocess:check_call' is nothing that a recipe is made of" in line


def test_a_run_s_folder_does_not_bring_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_ray.training.folder import RunFolder

    (tmp_path / "link").symlink_to("runs", target_is_directory=True)
    mine = str(tmp_path / "modules")
    stranger = [
        "",
        ".",
        "runs/evil",
        f"{tmp_path}/runs/evil",
        f"{tmp_path}/runs/evil/code",
        f"{tmp_path}/link/evil",
    ]
    folder = RunFolder.at(str(tmp_path / "runs"), "evil")
    folder.begin(recipe("moco", 32), {"name": "evil", "python_path": [*stranger, mine]})
    monkeypatch.chdir(tmp_path)
    assert folder.record()["python_path"] == [mine]


@pytest.mark.process
def test_show_neither_imports_from_beside_the_recipe_nor_builds(tmp_path: Path) -> None:
    """As the installed command runs: Python's path does not hold the folder that one is in."""
    (tmp_path / "beside.py").write_text(f"import os\nos.mkdir({PROOF!r})\ndef net(): ...\n")
    data = recipe("moco", 32).to_json()
    data["algorithm"]["backbone"] = {"type": "beside:net"}
    (tmp_path / "evil.json").write_text(json.dumps(data))
    code = "import sys; sys.argv = ['ssl-ray', 'show', 'evil.json']; from ssl_ray.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "algorithm.backbone: cannot import 'beside:net'" in refused(done, tmp_path)


@pytest.mark.process
def test_show_writes_no_control_characters(tmp_path: Path) -> None:
    data = recipe("moco", 32).to_json()
    data["name"] = "moco\x1b[2J\x07\nssl-ray: fine"
    (tmp_path / "odd.json").write_text(json.dumps(data))
    done = run(tmp_path, "show", "odd.json")
    assert done.returncode == 0, done.stderr
    assert not {"\x1b", "\x07"} & set(done.stdout)
    assert "\nssl-ray: fine" not in done.stdout


@pytest.mark.process
def test_json_that_is_too_deep_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 5000)
    assert "deep.json" in refused(run(tmp_path, "show", "deep.json"), tmp_path)


def test_a_spec_that_is_read_is_not_called() -> None:
    assert Spec.from_json(
        {"type": "torch.nn:Linear", "in_features": 2, "out_features": 3}
    ).build().weight.shape == (3, 2)
