"""What comes back from a checkpoint, and what is the recipe's."""

import json
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs
from torch import nn

from ssl_ray import experiments
from ssl_ray.errors import UserError
from ssl_ray.training import checkpoint
from ssl_ray.training.folder import CHECKPOINTS
from ssl_ray.training.mend import mend_list


def test_rates_are_the_recipe_s_and_state_the_checkpoint_s(tmp_path: Path) -> None:
    def parts(weight_decay: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        module = nn.Linear(3, 2)
        groups = [
            {"params": [module.weight], "lr_scale": 0.5},
            {"params": [module.bias], "weight_decay": 0.0},
        ]
        return module, torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=weight_decay)

    module, optimizer = parts(weight_decay=0.1)
    module(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    recipe = experiments.load("moco").SMALL
    checkpoint.save(
        tmp_path, algorithm=module, optimizer=optimizer, recipe=recipe, next_step=1, evaluations=[]
    )

    other, changed = parts(weight_decay=0.2)
    assert checkpoint.restore(tmp_path, other, changed) == (1, [])
    assert torch.equal(other.weight, module.weight)
    assert torch.equal(
        changed.state[other.weight]["momentum_buffer"], optimizer.state[module.weight]["momentum_buffer"]
    )
    assert [g["weight_decay"] for g in changed.param_groups] == [0.2, 0.0]
    assert changed.param_groups[0]["lr_scale"] == 0.5
    assert changed.param_groups[0]["params"] == [other.weight]


@pytest.fixture
def contents() -> dict[str, Any]:
    module = nn.Linear(3, 2)
    return {
        "algorithm": module,
        "optimizer": torch.optim.SGD(module.parameters(), lr=0.1),
        "recipe": experiments.load("moco").SMALL,
        "next_step": 7,
        "evaluations": [],
    }


def test_a_checkpoint_has_its_name_when_it_is_whole(tmp_path: Path, contents: dict[str, Any]) -> None:
    first = checkpoint.store(fs.LocalFileSystem(), str(tmp_path), **contents)
    again = checkpoint.store(fs.LocalFileSystem(), str(tmp_path), **contents)
    assert first != again, "a run that has gone back reaches the same step a second time"
    assert sorted(os.listdir(tmp_path)) == sorted([Path(first).name, Path(again).name])
    assert Path(first).name.startswith("checkpoint_000000007_")
    assert checkpoint.load(first)["next_step"] == 7


def test_one_that_cannot_be_written_leaves_nothing(tmp_path: Path, contents: dict[str, Any]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a disk that takes no more than that of a file
    try:
        with pytest.raises(OSError, match=r"checkpoint\.pt cannot be written, .* MB are free there$"):
            checkpoint.store(fs.LocalFileSystem(), str(tmp_path), **contents)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_one_that_was_cut_off_is_broken(tmp_path: Path, contents: dict[str, Any], share: float) -> None:
    path = Path(checkpoint.store(fs.LocalFileSystem(), str(tmp_path), **contents), checkpoint.FILE)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(checkpoint.BrokenCheckpoint, match="cannot be read") as error:
        checkpoint.load(path.parent)
    assert "\n" not in str(error.value)


def test_one_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    for written in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        written({"algorithm": Evil()}, tmp_path / checkpoint.FILE)
        with pytest.raises(UserError, match="others are not read because they can run code") as error:
            checkpoint.load(tmp_path)
        assert not isinstance(error.value, checkpoint.BrokenCheckpoint), "nothing to pass over in silence"
        assert not (tmp_path / "ran").exists()


def test_a_list_that_was_cut_off_is_made_anew(tmp_path: Path, contents: dict[str, Any]) -> None:
    assert mend_list(tmp_path) is None
    paths = [
        checkpoint.store(fs.LocalFileSystem(), str(tmp_path), **{**contents, "next_step": step})
        for step in (5, 10)
    ]
    for broken in ("", '{"ray_version": "2.6'):
        (tmp_path / CHECKPOINTS).write_text(broken)
        assert mend_list(tmp_path) == 2
        assert mend_list(tmp_path) is None
        listed = json.loads((tmp_path / CHECKPOINTS).read_text())["checkpoint_results"]
        assert [r["checkpoint_dir_name"] for r in listed] == [Path(path).name for path in paths]
        assert [r["metrics"] for r in listed] == [{"step": 5}, {"step": 10}]
