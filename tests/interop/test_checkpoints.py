"""Checkpoints of other code bases: told apart, read, and equal to the network that they are from."""

import argparse
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ssl_ray.errors import UserError
from ssl_ray.experiments import load
from ssl_ray.interop.backbone_file import read_backbone, write_backbone
from ssl_ray.interop.checkpoints import Imported, import_checkpoint
from ssl_ray.models import MAEViT, MoCoV3ViT, ResNet
from ssl_ray.models.encoder import pooled
from ssl_ray.recipe import overrides
from ssl_ray.spec import Spec
from tests.interop import checkpoints
from tests.interop.checkpoints import Theirs

MAE = Spec(MAEViT, img_size=32, patch_size=8, embed_dim=192, depth=2, num_heads=3)
MOCO_V3 = Spec(MoCoV3ViT, **MAE.kwargs)
SWIN = "SimMIMSwinTransformer(img_size=16, patch_size=2, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4)"

# (maker, what it is said to be, its algorithm, its architecture)
SOURCES = [
    (lambda: checkpoints.moco(1), "MoCo v1, facebookresearch/moco", "moco", "ResNet(depth=18)"),
    (lambda: checkpoints.moco(2), "MoCo v2, facebookresearch/moco", "moco", "ResNet(depth=18)"),
    (checkpoints.moco_v3_resnet, "facebookresearch/moco-v3", "moco_v3", "ResNet(depth=18)"),
    (checkpoints.moco_v3_vit, "facebookresearch/moco-v3", "moco_v3", repr(MOCO_V3)),
    (checkpoints.simsiam, "facebookresearch/simsiam", "simsiam", "ResNet(depth=18)"),
    (checkpoints.barlow_twins, "facebookresearch/barlowtwins", "barlow_twins", "ResNet(depth=50)"),
    (checkpoints.barlow_twins_backbone, "a ResNet in torchvision's names", None, "ResNet(depth=50)"),
    (checkpoints.swav, "facebookresearch/swav", "swav", "ResNet(depth=18)"),
    (checkpoints.mae, "facebookresearch/mae", "mae", repr(MAE)),
    (checkpoints.mae_encoder, "a Vision Transformer in timm's names", None, repr(MAE)),
    (checkpoints.simmim, "microsoft/SimMIM", "simmim", SWIN),
    (checkpoints.timm_swin, "a Swin Transformer in its authors' or timm's names", None, SWIN),
    (checkpoints.old_timm_swin, "a Swin Transformer in its authors' or timm's names", None, SWIN),
    (checkpoints.densecl, "DenseCL's own code or MMSelfSup 0.x", "densecl", "ResNet(depth=18)"),
    (checkpoints.densecl_backbone, "a ResNet in torchvision's names", None, "ResNet(depth=18)"),
    (checkpoints.mmselfsup_moco, "MMSelfSup 1.x, moco", "moco", "ResNet(depth=18)"),
    (checkpoints.mmselfsup_mae, "MMSelfSup 1.x, mae", "mae", repr(MAE)),
    (checkpoints.mmselfsup_moco_v3, "MMSelfSup 1.x, moco_v3", "moco_v3", repr(MOCO_V3)),
    (checkpoints.mmselfsup_simmim, "MMSelfSup 1.x, simmim", "simmim", SWIN),
]


def saved(theirs: Theirs, folder: Path) -> Path:
    torch.save(theirs.content, folder / "theirs.pth")
    return folder / "theirs.pth"


def agree(theirs: Theirs, ours: torch.nn.Module) -> None:
    images = torch.randn(3, 3, theirs.side, theirs.side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs.features(images)
        assert expected.std() > 0.01, "features that could tell two networks apart"
        torch.testing.assert_close(pooled(ours, images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("maker", "name", "algorithm", "architecture"), SOURCES)
def test_every_source(tmp_path, maker, name, algorithm, architecture) -> None:
    theirs = maker()
    result = import_checkpoint(saved(theirs, tmp_path))
    assert result.backbone.source == f"theirs.pth: {name}"
    assert result.algorithm == algorithm
    assert repr(result.backbone.architecture) == architecture
    fresh = ("mask_token",) if (algorithm, architecture) == (None, SWIN) else ()
    assert (result.report.missing, result.misfits, result.backbone.fresh) == (fresh, {}, fresh)
    agree(theirs, result.backbone.module)

    path = tmp_path / "ours.safetensors"
    write_backbone(result.backbone, path)
    read = read_backbone(path)
    assert read.architecture == result.backbone.architecture
    agree(theirs, read.module)


def test_an_algorithm_takes_the_file_as_pretrained(tmp_path) -> None:
    theirs = checkpoints.moco(2)
    write_backbone(import_checkpoint(saved(theirs, tmp_path)).backbone, tmp_path / "ours.safetensors")
    settings = {
        "algorithm.backbone": Spec(ResNet, depth=18),
        "algorithm.neck.in_channels": 512,
        "algorithm.pretrained": str(tmp_path / "ours.safetensors"),
    }
    agree(theirs, overrides(load("moco").SMALL, settings).algorithm.build().eval().backbone)


def test_the_file_says_what_it_holds(tmp_path) -> None:
    write_backbone(
        import_checkpoint(saved(checkpoints.swav(), tmp_path)).backbone, tmp_path / "x.safetensors"
    )
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        described = json.loads(file.metadata()["ssl_ray"])
        assert set(file.keys()) == set(ResNet(18).state_dict())
    assert described["architecture"] == {"type": "ssl_ray.models.backbones.resnet:ResNet", "depth": 18}
    assert described["source"] == "theirs.pth: facebookresearch/swav"
    assert described["image_size"] == 224


def test_settings_in_objects_of_unknown_classes_are_passed_over(tmp_path, monkeypatch) -> None:
    """As MAE's and SimMIM's files have them; a CfgNode is a dict with attributes."""
    yacs = types.ModuleType("yacs.config")
    yacs.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", yacs)
    theirs = checkpoints.moco(2)
    theirs.content["args"] = argparse.Namespace(lr=0.03, nested=argparse.Namespace(path=Path("x")))
    theirs.content["config"] = yacs.CfgNode(model=yacs.CfgNode(depth=50))
    theirs.content["config"].frozen = True
    path = saved(theirs, tmp_path)
    monkeypatch.delitem(sys.modules, "yacs.config")
    agree(theirs, import_checkpoint(path).backbone.module)


def test_files_of_old_versions_of_torch(tmp_path) -> None:
    """MoCo's are older than torch 1.6, which changed the format."""
    theirs = checkpoints.moco(1)
    torch.save(theirs.content, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    agree(theirs, import_checkpoint(tmp_path / "old.pth.tar").backbone.module)


def explode(path: str) -> None:
    Path(path).touch()


class Explosive:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return explode, (str(self.path),)


def test_no_code_in_a_file_runs(tmp_path) -> None:
    theirs = checkpoints.moco(2)
    theirs.content["args"] = Explosive(tmp_path / "exploded")
    import_checkpoint(saved(theirs, tmp_path))
    assert not (tmp_path / "exploded").exists()
    torch.load(tmp_path / "theirs.pth", weights_only=False)
    assert (tmp_path / "exploded").exists(), "it would have"


def test_positions_of_another_grid_are_resized_and_it_is_said(tmp_path, caplog) -> None:
    theirs = checkpoints.mae()
    result = import_checkpoint(saved(theirs, tmp_path), architecture=MAE.replace(img_size=48))
    assert "positions for 16 patches resized to 36" in caplog.text
    assert result.backbone.image_size == 48
    from timm.layers import resample_abs_pos_embed

    given = theirs.content["model"]["pos_embed"]
    expected = resample_abs_pos_embed(given, [6, 6], antialias=False)
    torch.testing.assert_close(result.backbone.module.pos_embed, expected, rtol=0, atol=1e-5)


def test_less_than_the_whole_backbone_is_refused_unless_partial(tmp_path) -> None:
    theirs = checkpoints.barlow_twins_backbone()
    content = dict(theirs.content)
    del content["layer4.2.conv3.weight"]
    content["layer4.2.bn3.weight"] = torch.zeros(7)
    path = saved(theirs._replace(content=content), tmp_path)
    with pytest.raises(
        UserError, match=r"1 tensors are missing \(layer4\.2\.conv3\.weight.* 1 have another shape"
    ) as error:
        import_checkpoint(path)
    assert "\n" not in str(error.value)
    assert "--partial" in str(error.value)
    first, second = (import_checkpoint(path, partial=True) for _ in range(2))
    assert first.report.missing == ("layer4.2.conv3.weight",)
    assert first.misfits == {"layer4.2.bn3.weight": ((7,), (2048,))}
    assert first.backbone.fresh == ("layer4.2.conv3.weight", "layer4.2.bn3.weight")
    states = [result.backbone.module.state_dict() for result in (first, second)]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=0, atol=0)
    torch.testing.assert_close(states[0]["layer1.0.conv1.weight"], content["layer1.0.conv1.weight"])


def test_nothing_that_fits_is_refused_even_if_partial(tmp_path) -> None:
    path = saved(checkpoints.moco(2), tmp_path)
    with pytest.raises(UserError, match="no tensor fits MAEViT"):
        import_checkpoint(path, architecture=MAE, partial=True)


def test_weights_that_are_no_numbers_are_refused(tmp_path) -> None:
    state = dict(checkpoints.resnet().state_dict())
    state["layer1.0.bn1.weight"] = torch.full((64,), float("nan"))
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"layer1\.0\.bn1\.weight holds non-finite values"):
        import_checkpoint(tmp_path / "x.pth")


def test_the_architecture_that_is_given_is_taken(tmp_path) -> None:
    path = saved(checkpoints.moco(2), tmp_path)
    with pytest.raises(UserError, match=r"not the whole of ResNet\(depth=34\)"):
        import_checkpoint(path, architecture=Spec(ResNet, depth=34))
    result: Imported = import_checkpoint(path, architecture=Spec(ResNet, depth=18, zero_init_residual=True))
    assert not result.guessed


def test_the_algorithm_that_is_given_decides(tmp_path) -> None:
    checkpoints.timm()
    path = saved(checkpoints.mae_encoder(), tmp_path)
    assert "--algorithm decides" in " ".join(import_checkpoint(path).assumed)
    assert import_checkpoint(path, "moco_v3").backbone.architecture.target is MoCoV3ViT
    with pytest.raises(UserError, match="no checkpoint of swav"):
        import_checkpoint(
            saved(Theirs({"predictor.0.weight": torch.zeros(2)}, lambda x: x, 1), tmp_path), "swav"
        )


def test_two_different_encoders_are_refused(tmp_path) -> None:
    theirs = checkpoints.densecl()
    theirs.content["state_dict"]["backbone.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    with pytest.raises(
        UserError, match=r"'encoder_q\.0\.conv1\.weight' and 'backbone\.conv1\.weight' differ"
    ):
        import_checkpoint(saved(theirs, tmp_path))


@pytest.mark.parametrize("arguments", [
    {"depth": 34},
    {"depth": 101, "width": 8},
    {"depth": 18, "width": 8, "stem_width": 16, "stem": "small"},
    {"depth": 50, "width": 4},
])  # fmt: skip
def test_the_shape_of_a_resnet_is_read_off(tmp_path, arguments) -> None:
    torch.save(ResNet(**arguments).state_dict(), tmp_path / "x.pth")
    assert import_checkpoint(tmp_path / "x.pth").backbone.architecture == Spec(ResNet, **arguments)


def test_heads_that_nobody_published_must_be_said(tmp_path) -> None:
    torch.save(MAEViT(16, 8, embed_dim=24, depth=1, num_heads=4).state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"--backbone 'MAEViT\(.*embed_dim=24, depth=1, num_heads=N\)'"):
        import_checkpoint(tmp_path / "x.pth")


def test_a_file_that_does_not_say_what_it_holds(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file(ResNet(18, width=4).state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="does not say what it holds"):
        read_backbone(tmp_path / "x.safetensors")
    assert import_checkpoint(tmp_path / "x.safetensors").backbone.architecture.kwargs == {
        "depth": 18,
        "width": 4,
    }
