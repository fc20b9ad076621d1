"""`ssl-ray evaluate RUN finetune` as users run it: it learns, goes on where it was cut off, and lies below its run."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssl_ray import distributed
from ssl_ray.data.mixing import Mixing
from ssl_ray.data.random import Draws
from ssl_ray.models import Classifier, ClsHead, LabelSmoothLoss, ResNet
from ssl_ray.models.sync_batch_norm import synchronize_batch_norm
from ssl_ray.recipe import Recipe
from ssl_ray.tracking.client import connect
from tests.ranks import Ranks
from tests.runs import TINY, checkpoints, drive, start, state, summary, wait_for

# 64 steps: at the recipe's own rate, meant for some hundreds, they would hardly leave chance.
FEW = [
    *("finetune", "--labels=20%", "--set=training.epochs=8", "--set=optimization.base_lr=0.05"),
    *("--set=training.checkpoint_steps=9", "--json"),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, two_cpus: str) -> Path:
    """A folder with a pretrained run `night`."""
    folder = tmp_path_factory.mktemp("here")
    summary(
        drive(
            folder, "pretrain", "moco", *TINY, "--epochs=2", "--name=night", "--json", f"--address={two_cpus}"
        )
    )
    return folder


@pytest.fixture(scope="module")
def tuned(here: Path, two_cpus: str) -> dict[str, Any]:
    """What `--json` says of its fine-tuning."""
    return summary(drive(here, "evaluate", "night", *FEW, f"--address={two_cpus}"))


def test_it_learns_and_says_where_it_is(here: Path, tuned: dict[str, Any]) -> None:
    (result,) = tuned["results"]
    assert (result["protocol"], result["setting"]) == ("finetune", "20% of the labels")
    assert result["details"]["labelled_images"] == round(0.2 * 1297)
    assert 0.4 < result["scores"]["top1"] < result["scores"]["top5"] <= 1, "chance is 0.1"
    assert tuned["metrics"]["eval/finetune_top1_20pct"] == result["scores"]["top1"]
    folder = Path(result["details"]["run"])
    assert folder.parent == here / "runs"
    assert folder.name.startswith("night-finetune-20pct-")


def test_it_began_with_the_weights_of_the_run(here: Path, tuned: dict[str, Any]) -> None:
    night = state(here / "runs" / "night" / checkpoints(here / "runs" / "night")[-1])
    folder = Path(tuned["results"][0]["details"]["run"])
    kept = load_file(folder / "backbone.safetensors")
    assert {f"backbone.{key}" for key in kept} == {key for key in night if key.startswith("backbone.")}
    model = Recipe.from_json(tuned["results"][0]["details"]["recipe"]).algorithm.build()
    final = state(folder / checkpoints(folder)[-1])
    for key, value in kept.items():
        assert torch.equal(value, night[f"backbone.{key}"])
        assert torch.equal(value, model.backbone.state_dict()[key])
    assert not torch.equal(final["backbone.conv1.weight"], night["backbone.conv1.weight"]), "all of it learns"


def test_mlflow_has_it_below_the_run(here: Path, tuned: dict[str, Any]) -> None:
    client = connect(f"sqlite:///{here}/mlflow.db")
    parent = client.get_run(tuned["mlflow_run_id"])
    assert parent.info.run_name == "night"
    assert parent.data.metrics["eval/finetune_top1_20pct"] == tuned["results"][0]["scores"]["top1"]
    child = client.get_run(tuned["results"][0]["details"]["mlflow_run_id"])
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.data.tags["protocol"], child.data.tags["labels"]) == ("finetune", "20%")
    assert child.info.status == "FINISHED"
    assert child.data.metrics["val/finetune_top1"] == tuned["results"][0]["scores"]["top1"]
    assert "train/top1" in child.data.metrics
    assert parent.info.status == "FINISHED"


def test_a_finished_one_is_not_repeated_and_is_not_resumed_as_a_pretraining(
    here: Path, tuned: dict[str, Any]
) -> None:
    again = drive(here, "evaluate", "night", *FEW[:-1])
    assert again.returncode == 0, again.stderr
    assert "nothing left to do" in again.stdout
    assert f"{100 * tuned['results'][0]['scores']['top1']:.2f}" in again.stdout
    name = Path(tuned["results"][0]["details"]["run"]).name
    refused = drive(here, "pretrain", f"--resume={name}")
    assert refused.returncode == 2
    assert (
        "is no pretraining; continue it with the command that began it: ssl-ray evaluate night"
        in refused.stderr
    )


@pytest.mark.process
def test_killed_and_the_same_command_again_equals_never_interrupted(
    here: Path, tuned: dict[str, Any], two_cpus: str
) -> None:
    shutil.copytree(here / "runs" / "night", here / "other" / "night")
    arguments = ["evaluate", "night", *FEW, "--storage=other", f"--address={two_cpus}"]
    process = start(here, *arguments)
    folder = here / "other" / Path(tuned["results"][0]["details"]["run"]).name
    wait_for(lambda: len(checkpoints(folder)) >= 2, "second checkpoint", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = summary(drive(here, *arguments))
    assert resumed["results"][0]["scores"] == tuned["results"][0]["scores"]
    theirs = Path(tuned["results"][0]["details"]["run"])
    ours, undisturbed = (state(f / checkpoints(f)[-1]) for f in (folder, theirs))
    for name, tensor in undisturbed.items():
        assert torch.equal(ours[name], tensor), name


def _train() -> dict[str, torch.Tensor]:
    """Two mixed steps on this worker's rows: losses and all weights."""
    torch.manual_seed(0)
    head = ClsHead(32, 10, loss=LabelSmoothLoss(0.1))
    model = Classifier(ResNet(depth=18, width=4, stem="small"), head, layer_decay=0.5).double()
    images = torch.randn(16, 3, 16, 16, dtype=torch.float64)
    label = torch.randint(0, 10, (16,))
    mixing = torch.stack([torch.from_numpy(Mixing().draw(Draws(0, 0, i))) for i in range(16)])
    views = [distributed.local_rows(images)]
    samples = {"label": distributed.local_rows(label), "mixing": distributed.local_rows(mixing)}
    wrapped = model
    if distributed.is_distributed():
        model = synchronize_batch_norm(model, torch.device("cpu"))
        wrapped = torch.nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False)
    optimizer = torch.optim.SGD(
        [{"params": g.params, "lr": 0.1 * g.lr_scale} for g in model.param_groups()], lr=0.1
    )
    seen = {}
    for step in range(2):
        optimizer.zero_grad()
        output = wrapped(views, samples, mode="loss")
        output.loss.backward()
        optimizer.step()
        seen[f"loss {step}"] = distributed.mean(output.loss.detach())
    return seen | {name: value for name, value in model.state_dict().items() if value.is_floating_point()}


def test_two_workers_do_what_one_does(ranks: Ranks) -> None:
    alone = _train()
    for found in ranks(2, _train):
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)
