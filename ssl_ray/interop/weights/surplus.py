"""What a file has beside the tensors that were loaded: parts around the backbone, or parts of it that ours lacks.

The former (classifiers, projectors, decoders) change no feature and are left out. Without the latter the features are
not those of the network that was trained: they are named, and the load is refused.
"""

import re
from collections.abc import Collection, Iterable

from ssl_ray.interop.weights.names import Entries

# First parts of the names of what code bases keep beside the backbone's own modules, and that no feature passes.
_BESIDE = frozenset({
    "fc", "head", "heads", "head_dist", "classifier", "classifiers", "last_linear", "linear", "pre_logits",
    "lm_head", "dino_head", "ibot_head", "neck", "projector", "projection_head", "projection", "predictor",
    "prediction_head", "prototypes", "contrastive_head", "momentum_projector", "momentum_classifier",
    "decoder", "decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred", "decoder_pos_embed", "mask_token",
    "queue", "queue_ptr", "queue2", "queue2_ptr", "memory_bank",
})  # fmt: skip
# Ends of names of constants that follow from an architecture, and of a bias that cancels in the softmax.
_CONSTANT = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask", "k_bias")
# What a tensor that ours lacks is a sign of: part of its name -> in words.
_SIGNS = {
    r"\.se\.conv": "efficient channel attention (ECA)",
    r"\.se\.": "squeeze-and-excitation",
    r"\.(attns|ffns)\.": "parallel branches",
    r"\.ls\d?\.|gamma_?[12]": "layer scale",
    r"[qk]_norm": "norms of queries and keys",
    r"reg_token": "register tokens",
    r"dist_token": "a distillation token",
    r"norm_pre|pre_norm|ln_pre": "a norm before the blocks",
    r"fc_norm": "a norm after pooling instead of before",
    r"attn_?pool": "pooling by attention",
    r"rope|freqs": "rotary positions",
    r"cpb_mlp|logit_scale": "Swin Transformer V2",
    r"relative_position_bias_table": "relative positions",
    r"absolute_pos_embed": "absolute positions",
    r"mlp\.(w\d|fc1_[gx])": "a gated MLP (SwiGLU)",
    r"^patch_embed\.backbone": "a convolutional network before the patches",
    r"^(conv1\.\d|stem)": "a stem of several convolutions (ResNet-C, -D)",
    r"downsample\.2": "a shortcut with average pooling (ResNet-D)",
}


def inside(entries: Entries, own: Collection[str]) -> list[str]:
    """Their keys of what their backbone (`entries`, under our names) has and ours (whose tensors are `own`) lacks."""
    return [
        key
        for name, (key, _) in entries.items()
        if name not in own and name.partition(".")[0] not in _BESIDE and not name.endswith(_CONSTANT)
    ]


def described(keys: Collection[str]) -> str:
    """Keys by group, in how many tensors, and what such are a sign of: "blocks.*.ls1.gamma (12, layer scale)"."""
    groups: dict[str, int] = {}
    for key in keys:
        group = pattern(key)
        groups[group] = groups.get(group, 0) + 1
    said = [f"{group} ({', '.join(filter(None, (str(n), _sign(group))))})" for group, n in groups.items()]
    return ", ".join(said[:4]) + (f" and {len(said) - 4} more kinds" if len(said) > 4 else "")


def pattern(key: str) -> str:
    """A shell pattern that matches the key and its like: "layer1.0.se.fc1.bias" -> "layer*.*.se.fc1.*"."""
    key = re.sub(r"(?<=\.)\d+(?=\.)|(?<=layer)\d(?=\.)", "*", key)
    return re.sub(r"\.(weight|bias)$", ".*", key)


def signs(names: Iterable[str]) -> list[str]:
    """What in a network's names, in words, is a sign of something that ours lack."""
    return list(dict.fromkeys(filter(None, map(_sign, names))))


def _sign(group: str) -> str:
    return next((words for sign, words in _SIGNS.items() if re.search(sign, group)), "")
