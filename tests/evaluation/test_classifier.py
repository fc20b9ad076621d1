"""Held-out accuracy of a classifier: the formula, and the same on any number of ranks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_ray.errors import UserError
from ssl_ray.evaluation.classifier import ClassifierEvaluation
from ssl_ray.models import Classifier, ClsHead, ResNet
from tests.evaluation.test_online import CLASSES, SIZE, Memory, source, stripes
from tests.ranks import Ranks


def model(classes: int = 7) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ResNet(depth=18, width=4, stem="small"), ClsHead(32, classes, init_std=1.0))


def evaluate(val: Memory | None, classes: int = 7) -> dict[str, float]:
    evaluation = ClassifierEvaluation(source(20, 0), val, size=SIZE, batch_size=16)
    assert evaluation.raw_pixel_knn() is None
    return evaluation.run(model(classes))


def test_equals_the_share_of_right_answers() -> None:
    images, labels = stripes(61, 1)
    classifier = model().eval()
    with torch.no_grad():
        logits = classifier.head.logits(classifier([torch.from_numpy(images).permute(0, 3, 1, 2)]))
    target = torch.from_numpy(labels)
    found = evaluate(source(61, 1))
    assert found["val/finetune_top1"] == pytest.approx((logits.argmax(1) == target).float().mean().item())
    best = logits.argsort(1, descending=True)[:, :5]
    assert found["val/finetune_top5"] == pytest.approx((best == target[:, None]).any(1).float().mean().item())
    assert 0 < found["val/finetune_top1"] < found["val/finetune_top5"] < 1
    assert found["val/finetune_loss"] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-4)


def test_no_top5_of_few_classes_and_unknown_classes_are_wrong() -> None:
    assert "val/finetune_top5" not in evaluate(source(30, 1), classes=5)
    two = evaluate(source(60, 1), classes=2)
    _, labels = stripes(60, 1)
    assert CLASSES > 2
    assert two["val/finetune_top1"] <= (labels < 2).mean()


def test_images_without_a_label_are_left_out() -> None:
    val = source(40, 1)
    assert val.classes is not None
    half = Memory(val.blobs, np.where(np.arange(40) < 20, val.classes, -1))
    assert evaluate(half) == pytest.approx(evaluate(Memory(val.blobs[:20], val.classes[:20])))
    with pytest.raises(UserError, match="0 held-out images with a label"):
        evaluate(Memory(val.blobs, np.full(40, -1)))


def test_the_model_is_left_as_it_was() -> None:
    classifier = model()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    ClassifierEvaluation(source(20, 0), source(20, 1), size=SIZE).run(classifier)
    assert classifier.training
    for name, value in classifier.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def _on_a_rank() -> dict[str, float]:
    return evaluate(source(61, 1))


def test_two_ranks_see_what_one_sees(ranks: Ranks) -> None:
    alone = evaluate(source(61, 1))
    for found in ranks(2, _on_a_rank):
        assert found == pytest.approx(alone, rel=1e-5)
