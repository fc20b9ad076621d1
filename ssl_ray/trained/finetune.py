"""Fine-tuning as a protocol: the whole network trained on labels, by the loop that pretrained it."""

import hashlib
import json
import math
import os
import platform
import shlex
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssl_ray import __version__
from ssl_ray.data.labels import LabelBudget, LabelledPart
from ssl_ray.data.source import Dataset
from ssl_ray.errors import UserError
from ssl_ray.evaluation.scores import Result
from ssl_ray.interop.backbone_file import TrainedBackbone, write_backbone
from ssl_ray.recipe import Recipe, overrides, parse_settings
from ssl_ray.resolve import resolve
from ssl_ray.trained.case import Case
from ssl_ray.trained.finetune_recipe import finetune_recipe
from ssl_ray.training.folder import RunFolder
from ssl_ray.training.places import is_own
from ssl_ray.training.pretrain import Request, alike, carry_out
from ssl_ray.workers import Workers

WEIGHTS = "backbone.safetensors"  # what a fine-tuning starts from, in its folder
METRIC = "val/finetune_"


@dataclass(frozen=True)
class Variant:
    """One fine-tuning of a case. scratch: from random weights instead."""

    budget: LabelBudget
    scratch: bool

    @property
    def key(self) -> str:
        """For names of metrics: nothing for all labels, as they are the usual ones."""
        part = [] if self.budget.share == 1 else [self.budget.slug]
        return "_".join([*part, *(["scratch"] if self.scratch else [])])

    def __str__(self) -> str:
        labels = "all labels" if self.budget.share == 1 else f"{self.budget} of the labels"
        labels = f"{self.budget}" if self.budget.shots else labels
        return labels + (", from scratch" if self.scratch else "")


def finetune(case: Case) -> list[Result]:
    """Trains a copy of the network with a new classifier, once for each number of labels; the last epoch counts.

    Each is a run of its own: it continues where it was cut off, and is not repeated once it is finished.
    """
    options = case.choices.finetuning
    backbone = case.subject.trained
    if backbone is None:
        raise UserError(
            f"finetune: {case.subject.name} is no network that the training loop can build; `ssl-ray import` makes a "
            "file of it that it can, or give a run"
        )
    case.disconnect()  # training sizes the cluster's processes anew
    scratch = options.from_scratch or case.subject.random
    variants = [Variant(LabelBudget.parse(text), scratch) for text in options.labels]
    return [_finetuned(case, backbone, variant) for variant in variants]


def _finetuned(case: Case, backbone: TrainedBackbone, variant: Variant) -> Result:
    started = time.monotonic()
    seed = case.choices.seed
    train = LabelledPart(case.dataset.train, variant.budget, seed)
    dataset = Dataset(train, case.dataset.val)
    weights = None if variant.scratch else case.subject.weights
    folder = _folder(case, variant, weights)
    pretrained = None if variant.scratch else f"{folder.uri.partition('?')[0]}/{WEIGHTS}"
    recipe = finetune_recipe(
        backbone,
        train.info,
        whole=case.dataset.train.info.num_samples,
        size=case.size,
        pretrained=pretrained,
        seed=seed,
    )
    recipe = resolve(overrides(recipe, parse_settings(case.choices.finetuning.settings)), train.info).recipe
    record = _begun(case, folder, recipe, dataset, weights)
    if not variant.scratch and not folder.exists():
        folder.keep(WEIGHTS, _as_file(backbone))
    case.console.print(
        f"fine-tuning, {variant}: {train.info.num_samples:,} images, {recipe.training.epochs} epochs of batches of "
        f"{recipe.training.global_batch_size}; run {folder.name}"
    )
    summary, _ = carry_out(
        folder,
        recipe,
        dataset,
        record,
        Request(
            workers=Workers.exactly(case.means.actors) if case.means.actors else None,
            address=case.means.address,
            gpus_per_worker=case.means.gpus_per_actor,
            verbose=case.means.verbose,
        ),
        case.console,
        started=started,
        tags={"protocol": "finetune", "labels": str(variant.budget)}
        | ({"mlflow.parentRunId": case.mlflow_run_id} if case.mlflow_run_id else {}),
    )
    if summary["status"] != "finished":
        raise UserError(
            f"finetune: {summary['status']} at step {summary.get('steps', '?')}; the same command continues"
        )
    last = summary["evaluations"][-1]
    if not math.isfinite(last[f"{METRIC}top1"]):
        raise UserError(
            f"finetune: run {folder.name} has diverged: {last['not_finite']:g} of {last['images']:g} answers are not "
            "finite and have no accuracy; lower its lr (--set optimization.base_lr=...)"
        )
    return Result(
        "finetune",
        str(variant),
        variant.key,
        {name: last[METRIC + name] for name in ("top1", "top5") if METRIC + name in last},
        details={
            "labelled_images": train.info.num_samples,
            "run": summary["folder"],
            "mlflow_run_id": summary["mlflow_run_id"],
            "recipe": recipe.to_json(),
        },
    )


def _folder(case: Case, variant: Variant, weights: str | None) -> RunFolder:
    """The run's folder, beside the subject's: named after it and all that is not as usual.

    Where a run of that name began with other weights - pretraining has gone on since - the step joins the name.
    """
    subject, options = case.subject, case.choices.finetuning
    parts = [subject.name.removesuffix("-random"), "finetune", variant.budget.slug]
    if variant.scratch:
        parts.append("scratch")
    if not is_own(subject.folder.record() if subject.folder else {}, case.data, case.dataset):
        parts.append(case.dataset.train.info.name)
    if case.choices.seed:
        parts.append(f"seed{case.choices.seed}")
    if options.settings or case.size != subject.image_size:
        text = json.dumps([sorted(options.settings), case.size])
        parts.append(hashlib.blake2b(text.encode(), digest_size=3).hexdigest())
    storage = subject.folder.storage if subject.folder else case.storage
    folder = RunFolder.at(storage, "-".join(parts))
    if folder.exists() and folder.record().get("weights") != weights:
        folder = RunFolder.at(storage, f"{folder.name}-step{subject.step}")
    return folder


def _begun(
    case: Case, folder: RunFolder, recipe: Recipe, dataset: Dataset, weights: str | None
) -> dict[str, Any]:
    """The run's record: as it was, or a new one. Raises UserError if a run of this name is another one."""
    own = case.subject.folder.record() if case.subject.folder else {}
    if not folder.exists():
        return {
            "name": folder.name,
            "subject": case.subject.name,
            "step": case.subject.step,
            "weights": weights,
            "command": shlex.join(["ssl-ray", *sys.argv[1:]]),
            "data": case.data,
            "choices": asdict(case.choices.finetuning),
            "dataset_digest": dataset.train.info.digest,
            "ssl_ray": __version__,
            "python": platform.python_version(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "python_path": own.get("python_path", [os.getcwd()]),
            **({"mlflow": own["mlflow"]} if "mlflow" in own else {}),
        }
    record = folder.record()
    for what, same in (
        ("weights", record.get("weights") == weights),
        ("data", record.get("dataset_digest") == dataset.train.info.digest),
        ("a recipe", alike(folder.recipe(), recipe)),
    ):
        if not same:
            raise UserError(
                f"finetune: run {folder.name!r} in {folder.storage} began with {what} that is not this one's; move or "
                "remove its folder to fine-tune anew"
            )
    return record | {"data": case.data}


def _as_file(backbone: TrainedBackbone) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, WEIGHTS)
        write_backbone(backbone, path)
        return path.read_bytes()
