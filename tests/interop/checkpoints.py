"""Made-up checkpoints of other code bases: networks of torchvision and timm, under the keys of each repository."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn

State = dict[str, Tensor]


class Theirs(NamedTuple):
    """content: what `torch.save` writes. features: what their network says of images (B, 3, side, side)."""

    content: Any
    features: Callable[[Tensor], Tensor]
    side: int


def timm() -> Any:
    return pytest.importorskip("timm", reason="timm is not installed: nothing to compare transformers with")


def randomized(model: nn.Module) -> nn.Module:
    """In evaluation mode, with no tensor at a special value: not even norms, biases and running statistics."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                scale = 0.3 / max(1, tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.1
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
                if tensor.ndim == 1 and name.endswith(("weight", "running_var")):
                    tensor.abs_().add_(1)
    return model.eval()


@functools.cache
def resnet(depth: int = 18) -> nn.Module:
    model = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    model.fc = nn.Identity()
    return randomized(model)


def vit(pool: str, side: int = 32, **arguments: Any) -> nn.Module:
    """Width 192, whose published number of heads is 3."""
    sizes = {
        "img_size": side,
        "patch_size": 8,
        "embed_dim": 192,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 0,
    }
    options = {"fc_norm": False} if pool == "avg" else {}
    return randomized(timm().models.VisionTransformer(**sizes, global_pool=pool, **options, **arguments))


def swin() -> nn.Module:
    """Two stages: maps of 8 x 8 cells, in windows of 4, and 4 x 4."""
    sizes = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}
    return randomized(timm().models.SwinTransformer(**sizes, window_size=4, num_classes=0))


def at(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    """A momentum copy: the same names, other values."""
    return {key: value + 1 for key, value in state.items()}


def layer(name: str, outputs: int = 4, inputs: int = 4) -> State:
    return {f"{name}.weight": torch.zeros(outputs, inputs), f"{name}.bias": torch.zeros(outputs)}


def trained(state: State, key: str = "state_dict") -> dict[str, Any]:
    return {"epoch": 200, "arch": "resnet50", key: state, "optimizer": {"state": {}, "param_groups": []}}


def moco(version: int) -> Theirs:
    state = resnet().state_dict()
    head = layer("fc", 128, 512) if version == 1 else layer("fc.0", 512, 512) | layer("fc.2", 128, 512)
    theirs = at("module.encoder_q.", state | head) | at("module.encoder_k.", other(state | head))
    queue = {"module.queue": torch.zeros(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return Theirs(trained(theirs | queue), resnet(), 64)


def moco_v3_resnet() -> Theirs:
    state = resnet().state_dict() | {"fc.0.weight": torch.zeros(4, 512), "fc.1.running_mean": torch.zeros(4)}
    theirs = at("module.base_encoder.", state) | at("module.momentum_encoder.", other(state))
    return Theirs(trained(theirs | {"module.predictor.0.weight": torch.zeros(4, 4)}), resnet(), 64)


def moco_v3_vit() -> Theirs:
    model = vit("token")
    state = model.state_dict() | {"head.0.weight": torch.zeros(4, 192), "head.1.weight": torch.ones(4)}
    theirs = at("module.base_encoder.", state) | at("module.momentum_encoder.", other(state))
    return Theirs(trained(theirs | {"module.predictor.0.weight": torch.zeros(4, 4)}), model, 32)


def simsiam() -> Theirs:
    head = {
        "fc.0.weight": torch.zeros(512, 512),
        "fc.1.weight": torch.ones(512),
        "fc.6.weight": torch.zeros(4, 512),
    }
    theirs = at("module.encoder.", resnet().state_dict() | head)
    return Theirs(trained(theirs | at("module.", layer("predictor.0") | layer("predictor.3"))), resnet(), 64)


def barlow_twins() -> Theirs:
    theirs = at("module.backbone.", resnet(50).state_dict()) | {
        "module.projector.0.weight": torch.zeros(4, 2048),
        "module.projector.1.weight": torch.ones(4),
        "module.bn.running_mean": torch.zeros(4),
    }
    return Theirs({"epoch": 1, "model": theirs, "optimizer": {}}, resnet(50), 64)


def barlow_twins_backbone() -> Theirs:
    return Theirs(resnet(50).state_dict(), resnet(50), 64)


def swav() -> Theirs:
    theirs = at("module.", resnet().state_dict() | layer("projection_head.0", 4, 512))
    theirs |= {"module.prototypes.weight": torch.zeros(3000, 4)}

    def features(images: Tensor) -> Tensor:
        """Their first convolution pads 2 cells, and a layer before it 1."""
        model: Any = resnet()
        x = nn.functional.conv2d(nn.ConstantPad2d(1, 0.0)(images), model.conv1.weight, stride=2, padding=2)
        x = model.maxpool(model.relu(model.bn1(x)))
        x = model.layer4(model.layer3(model.layer2(model.layer1(x))))
        return model.avgpool(x).flatten(1)

    return Theirs(theirs, features, 64)


def mae_vit() -> nn.Module:
    """Positions are a table that has 0 for the class token."""
    model: Any = vit("avg")
    model.pos_embed.data[:, 0] = 0
    return model


def mae() -> Theirs:
    model = mae_vit()
    decoder = (
        layer("decoder_embed", 8, 192) | layer("decoder_blocks.0.attn.qkv", 24, 8) | layer("decoder_pred")
    )
    extra = {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 17, 8)}
    return Theirs({"model": model.state_dict() | decoder | extra, "epoch": 799}, model, 32)


def mae_encoder() -> Theirs:
    model = mae_vit()
    return Theirs({"model": model.state_dict()}, model, 32)


def authors_swin(state: State) -> State:
    """In the authors' files a stage ends with the merging of patches; timm begins the next with it."""
    names = {"layers.1.downsample.": "layers.0.downsample."}
    moved = {}
    for key, value in state.items():
        for old, new in names.items():
            key = new + key.removeprefix(old) if key.startswith(old) else key
        moved[key] = value
    for i, cells in ((0, 16), (1, 16)):
        for j in range(2):
            moved[f"layers.{i}.blocks.{j}.attn.relative_position_index"] = torch.zeros(cells, cells)
    return moved | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16), "mask_token": torch.ones(1, 1, 8)}


def simmim() -> Theirs:
    model = swin()
    decoder = {"decoder.0.weight": torch.zeros(12, 16, 1, 1), "decoder.0.bias": torch.zeros(12)}
    theirs = at("encoder.", authors_swin(model.state_dict())) | decoder
    return Theirs({"model": theirs, "epoch": 99, "max_accuracy": 0.0}, model, 16)


def timm_swin() -> Theirs:
    return Theirs(swin().state_dict(), swin(), 16)


def old_timm_swin() -> Theirs:
    state = authors_swin(swin().state_dict())
    del state["mask_token"]
    return Theirs(state, swin(), 16)


def densecl() -> Theirs:
    state = resnet().state_dict()
    neck = {"mlp.0.weight": torch.zeros(4, 512), "mlp2.0.weight": torch.zeros(4, 512, 1, 1)}
    theirs = at("encoder_q.0.", state) | at("backbone.", state) | at("encoder_q.1.", neck)
    theirs |= at("encoder_k.0.", other(state)) | at("encoder_k.1.", neck)
    queues = {f"queue{n}{p}": torch.zeros(128, 8) for n in ("", "2") for p in ("", "_ptr")}
    return Theirs({"meta": {"epoch": 200}, "state_dict": theirs | queues}, resnet(), 64)


def densecl_backbone() -> Theirs:
    return Theirs({"state_dict": resnet().state_dict(), "author": "densecl"}, resnet(), 64)


def mmselfsup_moco() -> Theirs:
    state = resnet().state_dict()
    theirs = at("backbone.", state) | at("encoder_k.module.0.", other(state)) | layer("neck.mlp.0", 4, 512)
    theirs |= {"queue": torch.zeros(128, 8), "queue_ptr": torch.zeros(1), "encoder_k.steps": torch.tensor(7)}
    return Theirs({"meta": {"dataset_meta": {}}, "state_dict": theirs}, resnet(), 64)


MM_VIT = {
    "patch_embed.proj.": "patch_embed.projection.",
    "blocks.": "layers.",
    ".norm1.": ".ln1.",
    ".norm2.": ".ln2.",
    ".mlp.fc1.": ".ffn.layers.0.0.",
    ".mlp.fc2.": ".ffn.layers.1.",
}


def in_mmselfsups_names(state: State) -> State:
    theirs = {}
    for key, value in state.items():
        key = "ln1." + key.removeprefix("norm.") if key.startswith("norm.") else key
        for ours, mm in MM_VIT.items():
            key = key.replace(ours, mm)
        theirs[key] = value
    return theirs


def mmselfsup_mae() -> Theirs:
    model = vit("avg")
    theirs = at("backbone.", in_mmselfsups_names(model.state_dict())) | layer("neck.decoder_embed", 8, 192)
    assert "backbone.layers.1.ffn.layers.0.0.weight" in theirs
    return Theirs({"meta": {}, "state_dict": theirs}, model, 32)


def mmselfsup_moco_v3() -> Theirs:
    model = vit("token")
    state = in_mmselfsups_names(model.state_dict())
    theirs = (
        at("backbone.", state) | at("momentum_encoder.module.0.", other(state)) | layer("neck.fc0", 4, 192)
    )
    return Theirs({"meta": {}, "state_dict": theirs}, model, 32)


def mmselfsup_simmim() -> Theirs:
    """Their merging of patches unfolds the map: channel by channel, and of each its cells row by row."""
    model = swin()
    theirs: State = {
        "backbone.mask_token": torch.ones(1, 1, 8),
        "neck.decoder.0.weight": torch.zeros(12, 16, 1, 1),
    }
    for key, value in model.state_dict().items():
        if ".downsample." in key:
            unfolded = torch.empty_like(value)
            for row in range(2):
                for column in range(2):
                    for channel in range(8):
                        # timm's order is (0, 0), (1, 0), (0, 1), (1, 1) of (row, column).
                        unfolded[..., 4 * channel + 2 * row + column] = value[
                            ..., 8 * (2 * column + row) + channel
                        ]
            key, value = key.replace("layers.1.", "layers.0."), unfolded
        key = "norm1." + key.removeprefix("norm.") if key.startswith("norm.") else key
        key = key.replace("layers.", "stages.").replace(".attn.", ".attn.w_msa.")
        key = key.replace("patch_embed.proj.", "patch_embed.projection.")
        key = key.replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")
        theirs["backbone." + key] = value
    assert "backbone.stages.0.downsample.reduction.weight" in theirs
    return Theirs({"meta": {}, "state_dict": theirs}, model, 16)
