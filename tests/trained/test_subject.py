from pathlib import Path
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision

from ssl_ray.errors import UserError
from ssl_ray.trained.subject import load_subject, run_of
from tests.trained.run_folder import STEP, write_run


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("runs")
    write_run(storage, mlflow=False)
    return storage


@pytest.mark.parametrize(
    "given", ["night", "{}/night", "{}/night/checkpoint_000001", "{}/night/checkpoint_000001/"]
)
def test_a_run_by_any_name(storage: Path, given: str) -> None:
    subject = load_subject(given.format(storage), str(storage))
    assert (subject.name, subject.step, subject.image_size) == ("night", STEP, 16)
    assert subject.folder is not None
    assert subject.folder.uri == str(storage / "night")
    assert subject.convolutional
    assert subject.feature_width(16) == 64


def test_untrained_weights_are_others_and_repeatable(storage: Path) -> None:
    trained = load_subject("night", str(storage))
    first, again, other = (load_subject("night", str(storage), random=True, seed=s) for s in (3, 3, 4))
    assert first.weights == again.weights
    assert len({trained.weights, first.weights, other.weights}) == 3
    assert (first.name, first.step) == ("night-random", 0)


def test_loading_leaves_the_random_state(storage: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_subject("night", str(storage), random=True)
    assert torch.equal(torch.rand(3), expected)


def test_torchvision_without_its_classifier() -> None:
    subject = load_subject("torchvision:resnet18", "runs", random=True, seed=2)
    assert (subject.image_size, subject.convolutional) == (224, True)
    torch.manual_seed(2)
    model = torchvision.models.resnet18().eval()
    model.fc = torch.nn.Identity()  # type: ignore[assignment]
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(
            subject.encoder(images), model((images / 255 - mean) / std), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("name", "size", "width", "convolutional"),
    [
        ("torchvision:mobilenet_v3_small", 64, 1024, True),
        ("torchvision:vit_b_32", 224, 768, False),
        ("timm:vit_tiny_patch16_224", 224, 192, False),
        ("timm:resnet10t", 64, 512, True),
    ],
)
def test_networks_by_name(name: str, size: int, width: int, convolutional: bool) -> None:
    subject = load_subject(name, "runs", random=True)
    assert subject.feature_width(size) == width
    assert subject.convolutional is convolutional


def test_timm_normalises_as_the_model_wants() -> None:
    subject = load_subject("timm:vit_tiny_patch16_224", "runs", random=True)
    mean = timm.create_model("vit_tiny_patch16_224").default_cfg["mean"]
    assert mean == (0.5, 0.5, 0.5)
    preprocessor = subject.encoder.data_preprocessor
    image = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    torch.testing.assert_close(preprocessor.normalize(image), torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:resnet19", r"did you mean 'resnet1"),
        ("torchvision:ResNet50_Weights.IMAGENET1K_V3", r"did you mean 'ResNet50_Weights\.IMAGENET1K_V"),
        ("torchvision:squeezenet1_0", r"no linear classifier"),
        ("timm:vit_tiny_patch16_242", r"did you mean 'vit_tiny_patch16_224'"),
        ("nihgt", r"'nihgt' is no run"),
    ],
)
def test_names_that_are_none(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_subject(name, "runs", random=True)


def test_missing_weights_are_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        load_subject("torchvision:resnet18", "runs")
    line = str(error.value)
    assert f"{tmp_path}/hub/checkpoints/resnet18-f37072fd.pth" in line
    assert "--random" in line
    assert "\n" not in line
    monkeypatch.setattr("timm.models._builder.load_pretrained", no_network)
    with pytest.raises(UserError, match=r"neither cached nor can they be downloaded .*--random"):
        load_subject("timm:vit_tiny_patch16_224", "runs")


def test_a_size_that_does_not_fit() -> None:
    with pytest.raises(UserError, match=r"does not take images of 65 x 65 px .*leave --size out for 224"):
        load_subject("timm:vit_tiny_patch16_224", "runs", random=True).feature_width(65)


def test_what_is_no_run(storage: Path, tmp_path: Path) -> None:
    assert run_of("x.safetensors", str(tmp_path)) is None
    assert run_of("night", str(storage)) is not None
