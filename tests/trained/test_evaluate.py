"""What `ssl-ray evaluate` refuses, keeps and says, without a cluster."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from ssl_ray.console import Console
from ssl_ray.data.source import open_dataset
from ssl_ray.data.sources.base import Subset
from ssl_ray.errors import UserError
from ssl_ray.evaluation.features import Extraction, Features, read_cache, write_cache
from ssl_ray.tracking.client import connect
from ssl_ray.trained import case as case_module
from ssl_ray.trained.case import Case, Choices, Means
from ssl_ray.trained.evaluate import Request, _prefix, dataset_of, evaluate
from ssl_ray.trained.protocols import PROTOCOLS
from ssl_ray.trained.subject import Subject, load_subject
from tests.trained.run_folder import write_run


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    write_run(storage, mlflow=False)
    return storage


@pytest.fixture
def subject(storage: Path) -> Subject:
    return load_subject("night", str(storage))


def images(folder: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((20, 20, 3), 10 * i, np.uint8))
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocols": ["knn", "lineal"]}, r"there is no protocol 'lineal'; did you mean 'linear'"),
        ({"choices": Choices(probe="moko")}, r"probe: there is no 'moko'; did you mean 'moco'"),
        ({"data": "flat"}, r"data: flat has no labels to judge by; give labelled --data"),
        ({"holdout": 0.0, "data": "labelled"}, r"no held-out part to judge on"),
        ({"size": 9000000}, r"does not take images of 9000000"),
        (
            {"subject": "torchvision:resnet18", "random": True},
            r"data: torchvision-resnet18-random is no run .*--data",
        ),
        ({"data": "s3://me:secret@bucket/x"}, r"\*\*\*.*holds credentials"),
    ],
)
def test_mistakes(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    images(tmp_path / "flat", ["a.png", "b.png"])
    images(tmp_path / "labelled", ["a/0.png", "b/0.png", "a/1.png", "b/1.png"])
    monkeypatch.chdir(tmp_path)
    request = Request(**{"subject": "night", "storage": str(storage), **options})
    with pytest.raises(UserError, match=said):
        evaluate(request, Console("quiet"))
    assert not (storage / "night" / "evaluations.json").exists()
    assert not (tmp_path / "mlflow.db").exists()  # all of it is known before anything is begun


def test_the_runs_own_data_unless_others_are_named(storage: Path, tmp_path: Path, subject: Subject) -> None:
    name, dataset = dataset_of(subject, None, {"image_column": None}, None)
    assert (name, dataset.train.info.num_samples) == ("digits", 1297)
    folder = images(tmp_path, [f"{label}/{i}.png" for label in "ab" for i in range(10)])
    _, other = dataset_of(subject, str(folder), {}, None)
    assert other.val is not None
    assert (other.train.info.num_samples, other.val.info.num_samples) == (18, 2)
    assert dataset_of(subject, str(folder), {}, 0.5)[1].train.info.num_samples == 10


def test_other_data_have_other_metrics(subject: Subject) -> None:
    digits, fashion = open_dataset("digits"), open_dataset("fashion")
    assert _prefix(subject, "digits", digits) == "eval/"
    assert _prefix(subject, "fashion", fashion) == f"eval/{fashion.train.info.name}/"
    assert _prefix(replace(subject, folder=None), "fashion", fashion) == "eval/"


@pytest.fixture
def small(subject: Subject) -> Case:
    """A case of 300 and 100 digits; what it says is in `said`."""
    digits = open_dataset("digits")
    assert digits.val is not None
    dataset = type(digits)(Subset(digits.train, 0, 300), Subset(digits.val, 0, 100))
    said = io.StringIO()
    case = Case(
        subject, dataset, 16, Means(), Choices(shots=(1, 2, 500), draws=2), Console("normal", said, said)
    )
    case.said = said  # type: ignore[attr-defined]
    return case


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Features are made in this process; gives the digest of every source that they were made of."""
    made: list[str] = []

    def extract(extractions: Sequence[Extraction], **_: Any) -> list[Features]:
        made.extend(one.source.info.digest for one in extractions)
        cpu = torch.device("cpu")
        return [Features(*one.embed(0, one.source.info.num_samples, cpu, 1)) for one in extractions]

    monkeypatch.setattr(case_module, "extract", extract)
    monkeypatch.setattr(Case, "connect", lambda self: None)
    return made


def test_features_are_made_once_and_kept(small: Case, here: list[str]) -> None:
    assert small.dataset.val is not None
    digests = [small.dataset.train.info.digest, small.dataset.val.info.digest]
    first = small.train
    assert small.train is first
    assert here == digests, "both at once: all that is done with features takes both"
    assert len(small.val.labels) == small.dataset.val.info.num_samples
    assert len(here) == 2
    again = Case(small.subject, small.dataset, 16, Means(), Choices(), small.console)
    assert torch.equal(again.train.features, first.features)
    assert torch.equal(again.train.labels, first.labels)
    assert len(here) == 2
    assert again.cached == {"train": True, "val": True}
    key = Extraction(small.subject.encoder, small.subject.weights, small.dataset.train, 16).key
    file = case_module.cache_folder(small.subject) / f"{key}.safetensors"
    assert len(list(file.parent.iterdir())) == 2
    assert f"features of train: 300, read from {file}" in small.said.getvalue()  # type: ignore[attr-defined]

    Case(small.subject, small.dataset, 16, Means(cache=False), Choices(), small.console).train  # noqa: B018
    Case(small.subject, small.dataset, 14, Means(), Choices(), small.console).train  # noqa: B018
    assert len(here) == 6

    file.write_bytes(file.read_bytes()[:-100])
    mended = Case(small.subject, small.dataset, 16, Means(), Choices(), small.console)
    assert torch.equal(mended.train.features, first.features)
    assert f"{file} is not whole; its features are computed again" in small.said.getvalue()  # type: ignore[attr-defined]
    assert read_cache(file) is not None
    assert here[6:] == digests[:1], "what is whole is kept"


def test_broken_images_are_counted_and_their_labels_left_out(small: Case, here: list[str]) -> None:
    path = case_module.cache_folder(small.subject)
    key = Extraction(small.subject.encoder, small.subject.weights, small.dataset.train, 16).key
    index = torch.tensor([0, 2, 5])
    write_cache(path / f"{key}.safetensors", Features(torch.zeros(3, 4), index, [(1, "one.png", "cut off")]))
    labels = small.dataset.train.labels()
    assert labels is not None
    assert small.train.labels.tolist() == labels[[0, 2, 5]].tolist()
    assert small.broken == {"train": [(1, "one.png", "cut off")]}
    said = small.said.getvalue()  # type: ignore[attr-defined]
    assert "1 of 300 train images cannot be decoded and are left out: one.png (cut off)" in said
    assert small.dataset.train.info.digest not in here
    (path / f"{key}.safetensors").unlink()


@pytest.mark.parametrize("name", ["knn", "lowshot", "svm"])
def test_what_does_not_fit_is_left_out_with_a_line(small: Case, here: list[str], name: str) -> None:
    small.choices = Choices(ks=(5, 400), shots=(1, 2, 500), draws=2)
    results = PROTOCOLS[name](small)
    said = small.said.getvalue()  # type: ignore[attr-defined]
    line = (
        "kNN without k = 400: the bank has 300 images"
        if name == "knn"
        else "without n = 500: the smallest class has"
    )
    assert line in said
    keys = {"knn": ["k5_T0.07", "k5_T0.1"], "lowshot": ["n1", "n2", "10pct"], "svm": ["n1", "n2"]}[name]
    assert [result.key for result in results] == keys
    assert ("low-shot without 1 % of labels" in said) is (name == "lowshot")
    assert all(0 < result.scores["top1"] < 1 for result in results)
    assert all(("top1" in result.std) is (name != "knn") for result in results)
    assert json.loads(json.dumps([result.metrics() for result in results]))


def test_a_protocol_that_fails_takes_nothing_from_those_before(
    storage: Path, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Case) -> list[Any]:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setitem(PROTOCOLS, "svm", interrupted)
    request = Request("night", ["knn", "svm"], storage=str(storage), choices=Choices(ks=(5,)))
    with pytest.raises(KeyboardInterrupt):
        evaluate(request, Console("quiet"))
    (kept,) = json.loads((storage / "night" / "evaluations.json").read_text())["evaluations"]
    assert [result["protocol"] for result in kept["results"]] == ["knn", "knn"]
    (storage / "night" / "evaluations.json").unlink()


def test_only_too_large_k_is_a_mistake(small: Case, here: list[str]) -> None:
    small.choices = Choices(ks=(400,))
    with pytest.raises(UserError, match="k: 400 neighbours of 300 images"):
        PROTOCOLS["knn"](small)


@pytest.mark.parametrize("protocol", ["knn", "linear", "lowshot", "svm"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_features_that_are_not_finite_are_refused(
    small: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, protocol: str
) -> None:
    def features_of(extraction: Extraction) -> Features:
        count = extraction.source.info.num_samples
        found = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
        if count == {"train": 300, "val": 100}[part]:
            found[7:10, 3] = torch.nan
        return Features(found, torch.arange(count))

    monkeypatch.setattr(case_module, "extract", lambda extractions, **_: list(map(features_of, extractions)))
    monkeypatch.setattr(Case, "connect", lambda self: None)
    small.means = Means(cache=False)
    with pytest.raises(UserError) as error:
        PROTOCOLS[protocol](small)
    assert f"those of 3 of {300 if part == 'train' else 100} {part} images" in str(error.value)
    assert "not finite" in str(error.value)
    assert "\n" not in str(error.value)


def test_values_that_mlflow_has_not_got_are_not_said_to_be_there(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder, _ = write_run(tmp_path)
    run_id, uri = folder.record()["mlflow_run_id"], f"sqlite:///{tmp_path / 'mlflow.db'}"
    connect(uri).delete_run(run_id)

    def judged() -> tuple[dict[str, Any], str]:
        said = io.StringIO()
        console = Console("normal", said, said)
        return evaluate(
            Request("night", ["knn"], storage=str(tmp_path), choices=Choices(ks=(5,))), console
        ), (said.getvalue())

    done, said = judged()
    assert done["undelivered"] == 6  # at two temperatures: top-1, top-5 and the mean over classes
    assert f"and in MLflow's run {run_id}" not in said
    assert f"and in {folder.uri}/evaluations for MLflow's run {run_id}" in said
    assert (
        f"MLflow has not got these values: it is deleted; bring it back with `MLFLOW_TRACKING_URI={uri}"
        in said
    )
    assert f"mlflow runs restore --run-id {run_id}" in said
    assert list((tmp_path / "night" / "evaluations").glob("metrics-undelivered.jsonl"))

    connect(uri).restore_run(run_id)
    done, said = judged()
    assert done["undelivered"] == 0
    assert f"kept in {folder.uri}/evaluations.json, and in MLflow's run {run_id}" in said
    steps = connect(uri).get_metric_history(run_id, "eval/knn_top1_k5_T0.07")
    assert len(steps) == 2, "what was kept before is there, too"
