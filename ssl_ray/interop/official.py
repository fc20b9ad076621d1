"""Whose checkpoint is this? The key patterns of MMSelfSup and of the algorithms' official repositories.

A source is one entry of SOURCES: which keys give it away, and where in it the encoder that learns is.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_ray.errors import UserError
from ssl_ray.interop.weights import PREFIXES, entries_at, groups

Check = Callable[[Mapping[str, Tensor]], bool]


class Source(NamedTuple):
    """A code base's checkpoint of an algorithm.

    algorithm: our name, None where the keys do not say. prefix: of the encoder that learns, after `module.`.
    marks: beginnings of keys; a file that has them all, and those of no entry before this one, is of this source.
    check: what else must be, where beginnings alone would not tell. small_stem: a ResNet's with a 3x3 convolution.
    class_token: a Vision Transformer's features are its class token.
    """

    name: str
    algorithm: str | None
    prefix: str
    marks: tuple[str, ...]
    check: Check = lambda tensors: True
    small_stem: str = "small"
    class_token: bool = False

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a file of these tensors (without `module.`) is of this source."""
        marked = all(any(key.startswith(mark) for key in tensors) for mark in self.marks)
        return marked and self.check(tensors)


def _rows(key: str, count: int) -> Check:
    return lambda tensors: key in tensors and tensors[key].shape[:1] == (count,)


def _nothing_but(*parts: str) -> Check:
    return lambda tensors: all(key.startswith(parts) for key in tensors)


def _mmselfsup(algorithm: str, *marks: str, check: Check = lambda tensors: True) -> Source:
    return Source(f"MMSelfSup 1.x, {algorithm}", algorithm, "backbone.", ("backbone.", *marks), check)


def _mmselfsup_0(algorithm: str, prefix: str, *marks: str) -> Source:
    return Source(f"MMSelfSup 0.x, {algorithm}", algorithm, prefix, (prefix, *marks))


SOURCES = (
    _mmselfsup("densecl", "encoder_k.module.", "queue2"),
    _mmselfsup("moco", "encoder_k.module.", "queue"),
    _mmselfsup("byol", "target_net.module."),
    _mmselfsup("moco_v3", "momentum_encoder.module."),
    _mmselfsup("cae", "neck.regressors."),
    _mmselfsup("mae", "neck.decoder_embed."),
    _mmselfsup("simmim", "backbone.stages.", "neck.decoder."),
    _mmselfsup("swav", "head.loss.prototypes."),
    _mmselfsup("npid", "memory_bank.feature_bank"),
    _mmselfsup("odc", "memory_bank.centroids"),
    _mmselfsup("deepcluster", "backbone.sobel_layer.", "head.fc_cls."),
    _mmselfsup("deepcluster", "loss_weight", "head.fc_cls."),
    _mmselfsup_0("deepcluster", "backbone.", "sobel_layer.", "head.fc_cls."),
    _mmselfsup("relative_loc", "head.fc_cls.", "neck.bn.", check=_rows("head.fc_cls.weight", 8)),
    # DenseCL's own code is made of OpenSelfSup, as MMSelfSup 0.x is: their files have the same keys.
    Source("DenseCL's own code or MMSelfSup 0.x", "densecl", "encoder_q.0.", ("encoder_q.0.", "queue2")),
    _mmselfsup_0("moco", "encoder_q.0.", "queue"),
    _mmselfsup_0("byol", "online_net.0."),
    _mmselfsup_0("moco_v3", "base_encoder.0."),
    _mmselfsup_0("simsiam", "encoder.0.", "head.predictor."),
    _mmselfsup("barlow_twins", "head.bn.", "neck.fc0."),
    _mmselfsup("simsiam", "head.predictor.", "neck.fc0."),
    _mmselfsup("simclr", "neck.fc0.", check=_nothing_but("backbone.", "neck.")),
    _mmselfsup("rotation_pred", "head.fc_cls.", check=_rows("head.fc_cls.weight", 4)),
    Source(
        "MoCo v2, facebookresearch/moco",
        "moco",
        "encoder_q.",
        ("encoder_q.conv1.", "encoder_q.fc.2.", "queue"),
    ),
    Source(
        "MoCo v1, facebookresearch/moco", "moco", "encoder_q.", ("encoder_q.conv1.", "encoder_q.fc.", "queue")
    ),
    Source("facebookresearch/moco-v3", "moco_v3", "base_encoder.", ("base_encoder.", "momentum_encoder.")),
    Source(
        "facebookresearch/simsiam", "simsiam", "encoder.", ("encoder.conv1.", "encoder.fc.", "predictor.")
    ),
    Source("atten4vis/CAE", "cae", "encoder.", ("encoder.cls_token", "pretext_neck.")),
    # Lightning modules with a classifier that learns beside them. Many methods have the same keys.
    *(
        Source(
            "solo-learn",
            None,
            prefix,
            (prefix, "classifier.", second),
            small_stem="small_p2",
            class_token=True,
        )
        for prefix in ("backbone.", "encoder.")
        for second in ("projector.", "momentum_projector.", "momentum_backbone.")
    ),
    Source(
        "facebookresearch/barlowtwins",
        "barlow_twins",
        "backbone.",
        ("backbone.conv1.", "projector.", "bn.running_mean"),
    ),
    Source(
        "DINO's or iBOT's teacher",
        None,
        "backbone.",
        ("backbone.cls_token", "head.last_layer."),
        class_token=True,
    ),
    Source("DINOv2's teacher", None, "backbone.", ("backbone.cls_token", "dino_head."), class_token=True),
    Source("lightly, DINO's teacher", None, "teacher_backbone.", ("teacher_backbone.", "student_backbone.")),
    Source("lightly", None, "backbone.", ("backbone.", "projection_head.layers.")),
    Source("VISSL", None, "_feature_blocks.", ("_feature_blocks.",)),
    Source("facebookresearch/swav", "swav", "", ("conv1.", "projection_head.", "prototypes.weight")),
    Source(
        "facebookresearch/swav, DeepCluster-v2 or SeLa-v2",
        None,
        "",
        ("conv1.", "projection_head.", "prototypes.prototypes0."),
    ),
    Source("facebookresearch/mae", "mae", "", ("cls_token", "decoder_embed.")),
    Source("microsoft/SimMIM", "simmim", "encoder.", ("encoder.mask_token", "encoder.layers.", "decoder.")),
    Source("a Vision Transformer in torchvision's names", None, "", ("class_token", "conv_proj.")),
    Source("a Swin Transformer in torchvision's names", None, "", ("features.1.0.attn.relative_",)),
    Source("a ResNet as a Sequential", None, "", ("0.weight", "4.0.conv1.")),
    Source("a backbone in MMSelfSup's names", None, "", ("patch_embed.projection.",)),
    Source("a ResNet in torchvision's names", None, "", ("conv1.", "layer1.")),
    Source("a Vision Transformer in timm's names", None, "", ("patch_embed.", "blocks.")),
    Source("a Swin Transformer in its authors' or timm's names", None, "", ("patch_embed.", "layers.")),
    *(Source(f"a backbone at {p!r}", None, p, (p,)) for p in sorted(PREFIXES, key=len, reverse=True) if p),
)


def identify(tensors: Mapping[str, Tensor], algorithm: str | None = None) -> Source:
    """The first source whose marks `tensors` (without `module.`) have.

    algorithm: only its sources and those that serve any. Raises UserError if there is none.
    """
    for source in SOURCES:
        asked = algorithm is None or source.algorithm in (None, algorithm)
        if asked and source.fits(tensors):
            return source
    of = f" of {algorithm}" if algorithm else ""
    raise UserError(
        f"no checkpoint{of} that is known here; at its top are {groups(tensors)}; "
        "save the backbone's state_dict alone, in torchvision's or timm's names"
    )


def encoder_of(source: Source, tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """The tensors of the source's encoder under our names: {ours: (their key, value in our layout)}.

    Raises UserError if the file has a second copy of the encoder that differs.
    """
    inside = {
        k.removeprefix(source.prefix): (k, v) for k, v in tensors.items() if k.startswith(source.prefix)
    }
    for other in PREFIXES:
        for name, (key, value) in inside.items():
            twin = tensors.get(other + name, value)
            if twin is not value and (twin.shape != value.shape or not torch.equal(twin, value)):
                raise UserError(
                    f"{key!r} and {other + name!r} differ: two encoders; keep one of them in the file"
                )
    return entries_at(source.prefix, tensors)
