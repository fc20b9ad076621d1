import collections
import logging

import pytest
import torch
import torchvision

from ssl_ray.errors import UserError
from ssl_ray.interop import load_backbone, read_state_dict
from ssl_ray.models import MAEViT, ResNet, SimMIMSwinTransformer
from ssl_ray.models.encoder import pooled
from tests.interop import checkpoints


@pytest.fixture
def trained() -> ResNet:
    torch.manual_seed(0)
    return ResNet(18, width=4)


@pytest.fixture
def fresh() -> ResNet:
    torch.manual_seed(1)
    return ResNet(18, width=4)


def assert_equal(a: torch.nn.Module, b: torch.nn.Module) -> None:
    theirs = b.state_dict()
    for key, value in a.state_dict().items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "backbone.",
        "module.encoder_q.",
        "encoder_q.0.",
        "module.base_encoder.",
        "module.encoder.",
    ],
)
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_known_containers_and_prefixes(tmp_path, trained, fresh, prefix, container):
    tensors = {prefix + k: v for k, v in trained.state_dict().items()}
    tensors |= {f"{prefix}fc.weight": torch.zeros(3, 4), "neck.fc.bias": torch.zeros(2)}
    content = tensors if container is None else {container: tensors, "epoch": 3, "meta": {"seed": 0}}
    torch.save(content, tmp_path / "weights.pth")
    report = load_backbone(fresh, str(tmp_path / "weights.pth"))
    assert_equal(fresh, trained)
    assert len(report.matched) == len(fresh.state_dict())
    assert report.missing == ()
    assert len(report.unexpected) == 2
    with torch.no_grad():  # and forward equality
        x = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(fresh.eval()(x)[0], trained.eval()(x)[0])


def test_the_encoder_that_learns_is_taken_not_its_average(trained, fresh):
    average = {f"module.encoder_k.{k}": torch.zeros_like(v) for k, v in trained.state_dict().items()}
    load_backbone(fresh, average | {f"module.encoder_q.{k}": v for k, v in trained.state_dict().items()})
    assert_equal(fresh, trained)


def test_equal_duplicates_pass_and_different_ones_are_refused(trained, fresh):
    state = trained.state_dict()
    twice = {p + k: v for p in ("backbone.", "encoder_q.0.") for k, v in state.items()}
    load_backbone(fresh, twice)
    assert_equal(fresh, trained)
    twice["encoder_q.0.conv1.weight"] = state["conv1.weight"] + 1
    with pytest.raises(UserError, match="two different encoders"):
        load_backbone(fresh, twice)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("prefixes", [("",), ("backbone.", "encoder_q.0.")])
def test_weights_that_are_not_finite_are_refused(trained, fresh, value, prefixes):
    state = trained.state_dict()
    state["layer2.0.conv1.weight"][0, 0] = value
    before = fresh.layer1[0].conv1.weight.clone()
    with pytest.raises(UserError, match=rf"{prefixes[0]}layer2\.0\.conv1\.weight holds non-finite values"):
        load_backbone(fresh, {p + k: v for p in prefixes for k, v in state.items()})
    assert torch.equal(fresh.layer1[0].conv1.weight, before)


def test_batch_counters_may_be_missing_but_nothing_else(trained, fresh):
    state = {k: v for k, v in trained.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert load_backbone(fresh, state).missing == ()
    del state["layer4.1.bn2.running_var"]
    with pytest.raises(UserError, match=r"1 tensors of ResNet are missing: layer4\.1\.bn2\.running_var"):
        load_backbone(fresh, state)


def test_loading_nothing_is_an_error(fresh):
    with pytest.raises(UserError, match=r"no tensor fits ResNet.*blocks\.0\.weight.*conv1\.weight"):
        load_backbone(fresh, {"blocks.0.weight": torch.zeros(2)})


def test_another_width_is_an_error(trained):
    with pytest.raises(UserError, match="shapes differ from ResNet's"):
        load_backbone(ResNet(18, width=8), trained.state_dict())


def test_files_that_could_run_code_are_not_read(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hub": collections.deque([print])}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="not a file of plain tensors"):
        read_state_dict(tmp_path / "x.pth")


def test_what_is_no_weights_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_state_dict(tmp_path / "nothing.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_state_dict(tmp_path / "empty.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="not a file of plain tensors"):
        read_state_dict(tmp_path / "text.pth")
    for name in ("ResNet50_Weights.IMAGENET1K_V3", "ResNet50_Weight.IMAGENET1K_V2", "ResNet50_Weights"):
        with pytest.raises(UserError, match=r"did you mean 'ResNet50_Weights\.IMAGENET1K_V"):
            read_state_dict(f"torchvision:{name}")


def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "closed.pth").write_bytes(b"")
    monkeypatch.setattr(torch, "load", denied)
    with pytest.raises(UserError, match=r"closed\.pth: cannot be read \(.*Permission denied\)"):
        read_state_dict(tmp_path / "closed.pth")
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", denied)
    with pytest.raises(UserError, match=r"torchvision:ResNet18_Weights\.IMAGENET1K_V1: cannot be read"):
        read_state_dict("torchvision:ResNet18_Weights.IMAGENET1K_V1")
    pytest.importorskip("safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.safetensors: cannot be read"):
        read_state_dict(tmp_path / "text.safetensors")


def test_torchvision_names_go_through_torchvision(tmp_path, monkeypatch, fresh):
    """The file lies in the cache, where torchvision's own download would have put it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    reference = torchvision.models.resnet18(weights=None)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(reference.state_dict(), cache / weights.url.rpartition("/")[2])
    ours = ResNet(18)
    report = load_backbone(ours, "torchvision:ResNet18_Weights.IMAGENET1K_V1")
    assert report.unexpected == ("fc.weight", "fc.bias")
    torch.testing.assert_close(ours.layer3[0].conv1.weight, reference.layer3[0].conv1.weight)


def test_safetensors(tmp_path, trained, fresh):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(trained.state_dict(), tmp_path / "model.safetensors")
    load_backbone(fresh, tmp_path / "model.safetensors")
    assert_equal(fresh, trained)


def test_safetensors_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="pip install safetensors"):
        read_state_dict(tmp_path / "model.safetensors")


def test_vision_transformers_in_mmselfsup_names():
    torch.manual_seed(0)
    trained, fresh = (MAEViT(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2) for _ in range(2))
    names = {"patch_embed.proj": "patch_embed.projection", "norm.": "ln1.", "blocks.": "layers."}
    theirs = {}
    for key, value in trained.state_dict().items():
        for ours, mm in names.items():
            key = mm + key.removeprefix(ours) if key.startswith(ours) else key
        key = key.replace("norm1", "ln1").replace("norm2", "ln2")
        key = key.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
        theirs["backbone." + key] = value
    assert "backbone.layers.1.ffn.layers.0.0.weight" in theirs
    load_backbone(fresh, theirs)
    assert_equal(fresh, trained)


@pytest.mark.parametrize("merging", ["at the start of a stage", "at the end of a stage"])
def test_swin_transformers_in_timms_names(merging):
    """Its newer versions begin a stage with the merging of patches that older ones end the stage before with."""
    theirs = checkpoints.swin()
    state = theirs.state_dict()
    if merging == "at the end of a stage":
        state = checkpoints.authors_swin(state)
        del state["mask_token"]
    ours = SimMIMSwinTransformer(16, 2, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4).eval()
    assert load_backbone(ours, state).missing == ()
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(pooled(ours, images), theirs(images), rtol=0, atol=1e-5)


def test_the_load_is_reported(trained, fresh, caplog):
    with caplog.at_level(logging.INFO, "ssl_ray"):
        load_backbone(fresh, trained.state_dict())
    assert (
        f"weights -> ResNet: {len(fresh.state_dict())} tensors loaded, 0 missing, 0 not used" in caplog.text
    )
