"""What a fine-tuning's run is called, and when it is another one; no training."""

from dataclasses import replace
from pathlib import Path

import pytest

from ssl_ray.console import Console
from ssl_ray.data.labels import LabelBudget
from ssl_ray.data.source import Dataset
from ssl_ray.errors import UserError
from ssl_ray.trained.case import Case, Choices, FineTuning, Means
from ssl_ray.trained.evaluate import dataset_of
from ssl_ray.trained.finetune import Variant, _folder, finetune
from ssl_ray.trained.subject import load_subject
from tests.trained.run_folder import STEP, write_run


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """The run `night` on its own data."""
    write_run(tmp_path, mlflow=False)
    subject = load_subject("night", str(tmp_path))
    data, dataset = dataset_of(subject, None, {}, None)
    return Case(subject, dataset, 16, Means(), Choices(), Console("quiet"), data, str(tmp_path))


TEN = Variant(LabelBudget.parse("10%"), False)


def test_the_name_says_what_is_not_as_usual(case: Case) -> None:
    assert _folder(case, TEN, "w").name == "night-finetune-10pct"
    assert _folder(case, replace(TEN, scratch=True), "w").name == "night-finetune-10pct-scratch"
    assert _folder(case, Variant(LabelBudget.parse("4-shot"), False), "w").name == "night-finetune-4-shot"
    assert _folder(replace(case, choices=Choices(seed=3)), TEN, "w").name == "night-finetune-10pct-seed3"
    moved = replace(case, data="/elsewhere")
    assert _folder(moved, TEN, "w").name == "night-finetune-10pct", "the run's own images, at another place"
    others = replace(moved, dataset=Dataset(case.held_out, case.held_out))
    assert _folder(others, TEN, "w").name == "night-finetune-10pct-digits"
    names = {
        _folder(replace(case, choices=Choices(finetuning=FineTuning(settings=s))), TEN, "w").name
        for s in ((), ("training.epochs=2",), ("training.epochs=3",))
    }
    assert len(names | {_folder(replace(case, size=32), TEN, "w").name}) == 4


def test_other_weights_make_another_run(case: Case) -> None:
    first = _folder(case, TEN, "w")
    assert case.subject.folder is not None
    first.begin(case.subject.folder.recipe(), {"weights": "w"})
    assert _folder(case, TEN, "w") == first
    assert _folder(case, TEN, "later").name == f"night-finetune-10pct-step{STEP}"


def test_metrics_of_different_budgets_have_different_names() -> None:
    keys = [Variant(LabelBudget.parse(b), s).key for b in ("100%", "10%", "4-shot") for s in (False, True)]
    assert keys == ["", "scratch", "10pct", "10pct_scratch", "4-shot", "4-shot_scratch"]


def test_mistakes_are_named_before_anything_starts(case: Case) -> None:
    def tuned(case: Case, *settings: str, labels: str = "10%") -> None:
        finetune(replace(case, choices=Choices(finetuning=FineTuning((labels,), False, settings))))

    with pytest.raises(UserError, match="there is no 'epoch'"):
        tuned(case, "training.epoch=3")
    with pytest.raises(UserError, match="labels: 'some' is no number of labels"):
        tuned(case, labels="some")
    with pytest.raises(UserError, match="5000-shot needs 5000 images"):
        tuned(case, labels="5000-shot")
    with pytest.raises(UserError, match="no network that the training loop can build"):
        finetune(replace(case, subject=replace(case.subject, trained=None)))
    assert case.subject.folder is not None
    assert [p.name for p in Path(case.subject.folder.storage).iterdir() if "finetune" in p.name] == []
