"""Weights that others trained: the features are those of the network they are from, or the file is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from ssl_ray.errors import UserError
from ssl_ray.interop.backbone_file import read_backbone, write_backbone
from ssl_ray.interop.checkpoints import import_checkpoint
from ssl_ray.interop.weights import load_backbone
from ssl_ray.models import ResNet, ResNetSobel, SimSiam, VisionTransformer
from ssl_ray.models.encoder import pooled
from ssl_ray.models.heads import LatentPredictHead
from ssl_ray.models.necks import NonLinearNeck
from ssl_ray.spec import Spec
from ssl_ray.training.preflight import preflight
from tests import small
from tests.interop.checkpoints import Theirs, at, layer, other, randomized, timm

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}


def vit(classes: int = 0, **arguments: Any) -> nn.Module:
    return randomized(timm().models.VisionTransformer(**VIT, num_classes=classes, **arguments))


class BeforeClassifier(nn.Module):
    """What goes into a timm model's classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return features


def resnet(depth: int = 18, channels: int = 3, **arguments: Any) -> Any:
    model = getattr(torchvision.models, f"resnet{depth}")(weights=None, **arguments)
    model.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    model.fc = nn.Identity()
    return randomized(model)


def timm_resnet(block: str = "Bottleneck", **arguments: Any) -> nn.Module:
    """A ResNet-50, narrow."""
    module = timm().models.resnet
    sizes = {"layers": (3, 4, 6, 3), "channels": (16, 32, 64, 128), "num_classes": 0}
    return randomized(module.ResNet(getattr(module, block), **{**sizes, **arguments}))


def plain(model: Any, side: int = 32) -> Theirs:
    return Theirs(model.state_dict(), model, side)


def vit_with_a_classifier() -> Theirs:
    model = vit(classes=5)
    return Theirs(model.state_dict(), BeforeClassifier(model), 32)


def dinov2_without_training_layout() -> Theirs:
    """The authors' files: positions of class token and patches, none for the registers; a token that masks."""
    model: Any = vit(init_values=1e-5, reg_tokens=4, no_embed_class=True)
    state = dict(model.state_dict())
    position = state["cls_token"] / 2
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - position
    return Theirs(state | {"mask_token": torch.zeros(1, 192)}, model, 32)


def dinov2_in_training() -> Theirs:
    """Blocks in chunks; of a later chunk the first ones are placeholders."""
    model = vit(init_values=1e-5)
    state = {
        k.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): v
        for k, v in model.state_dict().items()
    }
    teacher = at("backbone.", state) | layer("dino_head.mlp.0", 4, 192) | layer("ibot_head.mlp.0", 4, 192)
    return Theirs({"teacher": teacher}, model, 32)


def dino() -> Theirs:
    model = vit()
    teacher = at("backbone.", model.state_dict()) | layer("head.mlp.0", 4, 192)
    teacher |= {"head.last_layer.weight_g": torch.ones(4, 1), "head.last_layer.weight_v": torch.ones(4, 4)}
    student = at("module.", other(teacher))
    return Theirs(
        {"student": student, "teacher": teacher, "epoch": 100, "optimizer": {"state": {}}}, model, 32
    )


def torchvision_vit() -> Theirs:
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=5
    )
    state = randomized(model).state_dict()
    model.heads = nn.Identity()
    return Theirs(state, model, 32)


def torchvision_swin() -> Theirs:
    model = torchvision.models.SwinTransformer(
        patch_size=[2, 2], embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=[4, 4], num_classes=5
    )
    state = randomized(model).state_dict()
    model.head = nn.Identity()
    return Theirs(state, model, 16)


def lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    around = {"epoch": 9, "global_step": 90, "pytorch-lightning_version": "2.1.2", "loops": {"fit_loop": {}}}
    return around | {"state_dict": state, "optimizer_states": [{"state": {}}], "lr_schedulers": []}


def solo_learn(cifar: bool = False, encoder: str = "backbone.") -> Theirs:
    model = resnet()
    if cifar:  # as it is for images of 32 pixels there
        model.conv1 = nn.Conv2d(3, 64, 3, 1, padding=2, bias=False)
        model.maxpool = nn.Identity()
        randomized(model)
    state = at(encoder, model.state_dict()) | layer("classifier", 10, 512)
    state |= at("momentum_backbone.", other(model.state_dict())) if not cifar else {}
    state |= layer("projector.0", 4, 512) | {"projector.1.running_mean": torch.zeros(4)}
    return Theirs(lightning(state), model, 32 if cifar else 64)


def lightly(children: bool) -> Theirs:
    """Its examples take a network of torchvision apart."""
    model = resnet()
    backbone = nn.Sequential(*list(model.children())[:-1]) if children else model
    head = layer("projection_head.layers.0", 4, 512) | layer("projection_head.layers.2")
    return Theirs(at("backbone.", backbone.state_dict()) | head, model, 64)


def vissl() -> Theirs:
    model = resnet()
    inner = {"trunk": at("_feature_blocks.", model.state_dict()), "heads": layer("0.clf.0", 4, 512)}
    content = {
        "classy_state_dict": {"base_model": {"model": inner, "meta": {}}, "optimizer": {}},
        "phase_idx": 99,
    }
    return Theirs(content, model, 64)


def under_a_name_of_its_own() -> Theirs:
    model = resnet()
    return Theirs(
        {"net": model.state_dict(), "best_accuracy": torch.tensor(0.5), "optimizer": {"state": {}}}, model, 64
    )


def compiled() -> Theirs:
    model = resnet()
    return Theirs({"model": at("_orig_mod.module.", model.state_dict())}, model, 64)


EQUAL: dict[str, tuple[Callable[[], Theirs], str, str]] = {
    # name: (maker, what it is said to be, its backbone here)
    "timm ViT": (vit_with_a_classifier, "a Vision Transformer in timm's names", "VisionTransformer"),
    "timm ViT, no classifier": (lambda: plain(vit()), "a Vision Transformer in timm's", "VisionTransformer"),
    "timm DINOv2": (
        lambda: plain(vit(init_values=1e-5)),
        "a Vision Transformer in timm's",
        "VisionTransformer",
    ),
    "timm DINOv2 with registers": (
        lambda: plain(vit(init_values=1e-5, reg_tokens=4, no_embed_class=True)),
        "a Vision Transformer in timm's",
        "VisionTransformer",
    ),
    "timm registers with positions": (
        lambda: plain(vit(reg_tokens=4)),
        "a Vision Transformer in timm's",
        "VisionTransformer",
    ),
    "timm DeiT III": (
        lambda: plain(vit(init_values=1e-6, no_embed_class=True)),
        "a Vision Transformer in timm's",
        "VisionTransformer",
    ),
    "DINOv2": (dinov2_without_training_layout, "a Vision Transformer in timm's", "VisionTransformer"),
    "DINOv2 in training": (dinov2_in_training, "DINOv2's teacher", "VisionTransformer"),
    "DINO": (dino, "DINO's or iBOT's teacher", "VisionTransformer"),
    "torchvision ViT": (torchvision_vit, "a Vision Transformer in torchvision's names", "VisionTransformer"),
    "torchvision Swin": (
        torchvision_swin,
        "a Swin Transformer in torchvision's names",
        "SimMIMSwinTransformer",
    ),
    "timm ResNet": (lambda: plain(timm_resnet(), 64), "a ResNet in torchvision's names", "ResNet"),
    "solo-learn": (solo_learn, "solo-learn", "ResNet"),
    "solo-learn, older": (lambda: solo_learn(encoder="encoder."), "solo-learn", "ResNet"),
    "solo-learn, CIFAR": (lambda: solo_learn(cifar=True), "solo-learn", "ResNet"),
    "lightly": (lambda: lightly(children=False), "lightly", "ResNet"),
    "lightly, children": (lambda: lightly(children=True), "lightly", "ResNet"),
    "VISSL": (vissl, "VISSL", "ResNet"),
    "torch.compile": (compiled, "a ResNet in torchvision's names", "ResNet"),
    "the only dict of tensors": (under_a_name_of_its_own, "a ResNet in torchvision's names", "ResNet"),
}


def agree(theirs: Theirs, ours: nn.Module, channels: int = 3) -> None:
    """Features of both in float64; a gray image is the same in all channels."""
    shape = (3, channels, theirs.side, theirs.side)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert isinstance(theirs.features, nn.Module)
    theirs.features.double()
    with torch.no_grad():
        expected = theirs.features(images)
        assert expected.std() > 0.01, "features that could tell two networks apart"
        found = pooled(ours.double(), images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", EQUAL)
def test_features_are_those_of_the_network_it_is_from(tmp_path, name) -> None:
    maker, source, backbone = EQUAL[name]
    theirs = maker()
    torch.save(theirs.content, tmp_path / "theirs.pth")
    result = import_checkpoint(tmp_path / "theirs.pth")
    assert result.backbone.source.startswith(f"theirs.pth: {source}")
    assert (result.algorithm, result.backbone.architecture.name) == (None, backbone)
    agree(theirs, result.backbone.module)
    # An algorithm's `pretrained` takes the file itself, too.
    fresh = result.backbone.architecture.build().eval()
    load_backbone(fresh, tmp_path / "theirs.pth")
    agree(theirs, fresh)


def test_of_lightlys_dino_the_teacher_is_taken(tmp_path) -> None:
    """As its authors do; the example there takes a network of torchvision apart."""
    model = resnet()
    children = nn.Sequential(*list(model.children())[:-1]).state_dict()
    state = at("teacher_backbone.", children) | at("student_backbone.", other(children))
    torch.save(state | layer("student_head.layers.0", 4, 512), tmp_path / "theirs.pth")
    result = import_checkpoint(tmp_path / "theirs.pth")
    assert result.backbone.source == "theirs.pth: lightly, DINO's teacher"
    agree(plain(model, 64), result.backbone.module)


def beit() -> nn.Module:
    return timm().models.Beit(
        **VIT, num_classes=0, use_abs_pos_emb=True, use_rel_pos_bias=True, use_fc_norm=False
    )


def swin(version: str, **arguments: Any) -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}
    return getattr(timm().models, f"SwinTransformer{version}")(
        **sizes, window_size=4, num_classes=0, **arguments
    )


def distilled() -> nn.Module:
    return timm().models.deit.VisionTransformerDistilled(**VIT, num_classes=5)


def gated(**arguments: Any) -> nn.Module:
    from timm.layers import SwiGLUPacked

    return vit(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, **arguments)


def group_norms() -> nn.Module:
    timm()
    from timm.layers import GroupNorm1

    return timm_resnet(norm_layer=GroupNorm1)


def with_tensor(model: nn.Module, name: str, value: Tensor) -> dict[str, Tensor]:
    return model.state_dict() | {name: value}


# name: (maker, what the message names)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "SE": (
        lambda: timm_resnet(block_args={"attn_layer": "se"}),
        r"no place for layer\*\.\*\.se\.fc1\.\* \(32, squeeze-and-excitation\)",
    ),
    "ECA": (lambda: timm_resnet(block_args={"attn_layer": "eca"}), r"\(16, efficient channel attention"),
    "deep stem": (lambda: timm_resnet(stem_type="deep", stem_width=8), "a stem of several convolutions"),
    "average pooling": (lambda: timm_resnet(avg_down=True), r"shortcuts with average pooling \(ResNet-D\)"),
    "wide": (lambda: timm_resnet(base_width=128), "a wide ResNet"),
    "ResNeXt": (lambda: timm_resnet(cardinality=4, base_width=16), r"convolutions in 4 groups \(ResNeXt\)"),
    "GroupNorm": (group_norms, r"norms without running statistics \(GroupNorm\)"),
    "26 layers": (lambda: timm_resnet(layers=(2, 2, 2, 2)), r"a ResNet of \(2, 2, 2, 2\) bottlenecks"),
    "norms of queries and keys": (
        lambda: vit(qk_norm=True),
        r"attn\.q_norm\.\* \(4, norms of queries and keys",
    ),
    "norm before the blocks": (lambda: vit(pre_norm=True), r"norm_pre\.\* \(2, a norm before the blocks\)"),
    "SwiGLU": (gated, "gated MLPs"),
    "no bias": (lambda: vit(qkv_bias=False), "queries, keys and values have no bias"),
    "no class token": (lambda: vit(class_token=False, global_pool="avg"), r"\(no class token"),
    "norm after pooling": (lambda: vit(global_pool="avg"), r"fc_norm\.\* \(2, a norm after pooling"),
    "no norm": (lambda: vit(final_norm=False), r"2 tensors are missing \(norm\.weight"),
    "a distillation token": (distilled, "a distillation token has one, too"),
    "relative positions": (beit, r"relative_position_bias_table \(2, relative positions\)"),
    "no positions": (
        lambda: timm().models.Beit(**VIT, num_classes=0, use_abs_pos_emb=False),
        r"\(no table of positions",
    ),
    "BEiT": (
        lambda: timm().models.Beit(
            **VIT, num_classes=5, init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True
        ),
        r"\(no table of positions, relative positions, a norm after",
    ),
    "Swin with positions": (
        lambda: with_tensor(swin(""), "absolute_pos_embed", torch.zeros(1, 64, 8)),
        r"absolute_pos_embed \(1, absolute positions\)",
    ),
    "something in the blocks": (
        lambda: with_tensor(vit(), "blocks.1.mlp.gate", torch.zeros(1)),
        r"no place for blocks\.\*\.mlp\.gate \(1\)",
    ),
    "something beside them": (
        lambda: with_tensor(resnet(), "attn", torch.zeros(1)),
        r"no place for attn \(1\)",
    ),
    "Hugging Face's names": (
        lambda: at(
            "vit.", nn.ModuleDict({"embeddings": nn.Linear(2, 2), "encoder": nn.Linear(2, 2)}).state_dict()
        ),
        r"at its top are vit \(4 tensors\)",
    ),
    "DINOv3": (lambda: timm().create_model("vit_small_patch16_dinov3", depth=1), r"\(no table of positions"),
    "rotary positions without weights": (
        lambda: timm().create_model("vit_small_patch16_rope_ape_224", depth=1),
        "rotary positions, which have no weights",
    ),
    "Swin V2": (lambda: swin("V2"), "Swin Transformer V2"),
    "other windows": (
        lambda: timm().create_model("swin_s3_tiny_224", depths=(1, 1, 1, 1)),
        "have another shape .layers.2.blocks.0.attn.relative_position_bias_table",
    ),
    "4 channels": (lambda: resnet(channels=4), "made for images of 4 channels; those here have 3"),
    "13 channels": (lambda: resnet(channels=13), "made for images of 13 channels"),
    "2 channels": (lambda: resnet(channels=2), "of 2 channels.*--algorithm deepcluster"),
    "6 channels, ViT": (lambda: vit(in_chans=6), "made for images of 6 channels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_give_the_same_features_is_refused(tmp_path, name) -> None:
    maker, said = REFUSED[name]
    made = maker()
    torch.save(made.state_dict() if isinstance(made, nn.Module) else made, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=said) as error:
        import_checkpoint(tmp_path / "theirs.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("maker", "said"),
    [
        (
            lambda: timm().create_model("resnetblur18", num_classes=0),
            "timm's resnetblur and resnetaa have the same",
        ),
        (
            lambda: vit(act_layer="gelu_tanh"),
            "LayerNorm's epsilon 1e-6 and the exact GELU: not in the weights",
        ),
        (
            lambda: swin(""),
            "LayerNorm's epsilon 1e-5 and the exact GELU: not in the weights",
        ),
    ],
)
def test_what_weights_do_not_show_is_said(tmp_path, maker, said) -> None:
    torch.save(maker().state_dict(), tmp_path / "theirs.pth")
    assert said in "; ".join(import_checkpoint(tmp_path / "theirs.pth").assumed)


def test_what_is_left_over_can_be_left_out(tmp_path) -> None:
    model = timm_resnet(block_args={"attn_layer": "se"})
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=r"--drop 'layer\*\.\*\.se\.fc1\.\*'"):
        import_checkpoint(tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=r"no place for layer\*\.\*\.se\.fc2\.\*"):
        import_checkpoint(tmp_path / "theirs.pth", drop=["layer*.*.se.fc1.*"])
    result = import_checkpoint(tmp_path / "theirs.pth", drop=["layer*.*.se.fc?.*"])
    assert len(result.dropped) == 64
    assert result.backbone.source.endswith(", without layer*.*.se.fc?.*")
    ours = result.backbone.module.state_dict()
    assert set(ours) == set(model.state_dict()) - set(result.dropped)
    for key, value in ours.items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=0, atol=0)
    with pytest.raises(UserError, match=r"1 tensors are missing \(bn1\.weight"):
        import_checkpoint(tmp_path / "theirs.pth", drop=["*.se.*", "bn1.weight"])


def test_what_is_left_over_is_refused_as_pretrained_weights_too() -> None:
    backbone = VisionTransformer(**VIT)
    state = vit(init_values=1e-5).state_dict()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(
        UserError, match=r"VisionTransformer has no place for blocks\.\*\.ls1\.gamma \(2, layer scale\)"
    ):
        load_backbone(backbone, state)
    torch.testing.assert_close(dict(backbone.state_dict()), before, rtol=0, atol=0)


def gray_swin() -> Theirs:
    model = swin("", in_chans=1)
    return plain(randomized(model), 16)


@pytest.mark.parametrize(
    "maker",
    [lambda: plain(resnet(channels=1), 64), lambda: plain(vit(in_chans=1)), gray_swin],
    ids=["ResNet", "ViT", "Swin"],
)
def test_weights_for_gray_images_see_gray_images_alike(tmp_path, maker, caplog) -> None:
    theirs = maker()
    torch.save(theirs.content, tmp_path / "theirs.pth")
    result = import_checkpoint(tmp_path / "theirs.pth")
    assert "made for images of one channel, spread over three" in caplog.text
    assert "in_channels" not in result.backbone.architecture.kwargs
    agree(theirs, result.backbone.module, channels=1)
    fresh = result.backbone.architecture.build().eval()
    load_backbone(fresh, tmp_path / "theirs.pth")
    agree(theirs, fresh, channels=1)


def test_channels_that_no_image_here_has_are_refused_if_asked_for(tmp_path) -> None:
    torch.save(resnet(channels=1).state_dict(), tmp_path / "theirs.pth")
    with pytest.raises(UserError, match="in_channels=1, and images here have 3; leave in_channels out"):
        import_checkpoint(tmp_path / "theirs.pth", architecture=Spec(ResNet, depth=18, in_channels=1))


def test_an_algorithm_goes_on_from_a_vision_transformer_of_others(tmp_path) -> None:
    model = timm().models.VisionTransformer(28, 4, embed_dim=192, depth=1, num_heads=3, init_values=1e-5)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    imported = import_checkpoint(tmp_path / "theirs.pth").backbone
    write_backbone(imported, tmp_path / "ours.safetensors")
    settings = {
        "algorithm.backbone": imported.architecture,
        "algorithm.pretrained": str(tmp_path / "ours.safetensors"),
        "algorithm.neck.with_avg_pool": False,
    }
    recipe = small.recipe("simclr", 16, settings)
    preflight(recipe)
    algorithm = recipe.algorithm.build()
    torch.testing.assert_close(algorithm.backbone.state_dict(), imported.module.state_dict(), rtol=0, atol=0)


class MMSelfSupSobel(nn.Module):
    """Its ResNet on the edges of its two convolutions, which hold what they were initialised with: noise."""

    def __init__(self) -> None:
        super().__init__()
        self.sobel_layer = nn.Module()
        self.sobel_layer.sobel = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 3, padding=1))
        self.resnet = resnet(channels=2)
        randomized(self)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.resnet(self.sobel_layer.sobel(images))
        return features


@pytest.mark.parametrize("version", ["1.x", "0.x"])
def test_the_filters_of_mmselfsups_deepcluster_are_used_as_they_are(tmp_path, version, caplog) -> None:
    model = MMSelfSupSobel()
    state = at("backbone.", model.resnet.state_dict()) | layer("head.fc_cls", 10, 512)
    sobel = at("sobel_layer.", model.sobel_layer.state_dict())
    state |= at("backbone.", sobel) if version == "1.x" else sobel
    torch.save({"meta": {}, "state_dict": state | {"loss_weight": torch.ones(10)}}, tmp_path / "theirs.pth")
    result = import_checkpoint(tmp_path / "theirs.pth")
    assert (result.algorithm, result.backbone.architecture) == ("deepcluster", Spec(ResNetSobel, depth=18))
    assert "other numbers than Sobel's" in caplog.text
    assert [k for k in result.report.unexpected if "sobel" in k] == []
    theirs = Theirs(state, model, 64)
    # What is imported is read again, by `evaluate` and `export`, and by an algorithm.
    write_backbone(result.backbone, tmp_path / "ours.safetensors")
    neck = NonLinearNeck(512, 8, 8)
    head = LatentPredictHead(NonLinearNeck(8, 8, 8, with_avg_pool=False))
    algorithm = SimSiam(ResNetSobel(18), neck, head, pretrained=str(tmp_path / "ours.safetensors")).eval()
    for ours in (
        result.backbone.module,
        read_backbone(tmp_path / "ours.safetensors").module,
        algorithm.backbone,
    ):
        agree(theirs, ours)


def test_a_deepcluster_without_filters_has_sobels(tmp_path) -> None:
    """As files that hold the backbone alone; that it is one must be said."""
    torch.save(resnet(channels=2).state_dict(), tmp_path / "theirs.pth")
    result = import_checkpoint(tmp_path / "theirs.pth", algorithm="deepcluster")
    assert result.backbone.architecture == Spec(ResNetSobel, depth=18)
    assert result.assumed == ("Sobel's filters: the file has none",)
    assert result.backbone.fresh == ()
    expected = ResNetSobel(18).sobel.filters
    torch.testing.assert_close(result.backbone.module.sobel.filters, expected, rtol=0, atol=0)


# Files that were once taken for one of a known algorithm, for a few of its keys.
@pytest.mark.parametrize("beside", [
    layer("projector.0", 4, 512),  # VICReg, ...
    layer("head.fc_cls", 1000, 512),  # a linear probe of MMSelfSup, once "rotation_pred"
    layer("classifier", 10, 512),
    layer("neck.fc0", 4, 512) | layer("my_head", 4, 4),  # once "simclr"
])  # fmt: skip
def test_nothing_is_recognised_by_what_many_have(tmp_path, beside) -> None:
    model = resnet()
    torch.save({"state_dict": at("backbone.", model.state_dict()) | beside}, tmp_path / "theirs.pth")
    result = import_checkpoint(tmp_path / "theirs.pth")
    assert result.algorithm is None
    assert result.backbone.source == "theirs.pth: a backbone at 'backbone.'"
    agree(plain(model, 64), result.backbone.module)


def test_a_file_without_weights_says_what_it_has(tmp_path) -> None:
    torch.save({"epoch": 3, "args": {"lr": 0.1}, "best": torch.tensor(1.0)}, tmp_path / "one.pth")
    with pytest.raises(UserError, match="at its top are best"):
        import_checkpoint(tmp_path / "one.pth")
    torch.save({"epoch": 3, "args": {"lr": 0.1}}, tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"holds no state dict; .*at its top are epoch, args \(a dict of 1\)"):
        import_checkpoint(tmp_path / "none.pth")
    two = {"ema": resnet().state_dict(), "net": resnet().state_dict()}
    torch.save(two, tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"at its top are ema \(a dict of 120\), net \(a dict of 120\)"):
        import_checkpoint(tmp_path / "two.pth")
