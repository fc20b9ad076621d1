"""What a masked method makes of hidden patches, as rows of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_ray.data.pipeline import ViewPipeline, make_batch
from ssl_ray.data.source import Source
from ssl_ray.evaluation.undisturbed import undisturbed
from ssl_ray.models.algorithms.cae import CAE, Prediction
from ssl_ray.models.algorithms.mae import MAE, Reconstruction
from ssl_ray.models.base import BaseModel
from ssl_ray.models.tokenizers.patch_codebook import PatchCodebook

_GRAY = 128.0
Rows = list[list[np.ndarray]]


@dataclass(frozen=True)
class Masked:
    """columns: what the pictures of a row are. rows: of each image, (S, S, 3) uint8. note: how to read them."""

    columns: Sequence[str]
    rows: Rows
    note: str


def masked(
    algorithm: BaseModel, pipeline: ViewPipeline, source: Source, indices: np.ndarray, seed: int
) -> Masked | None:
    """Hides patches of these images as in training and lets the algorithm fill them in; None for other methods."""
    if not any(name.startswith("mask") for name in pipeline.columns):
        return None
    columns, failures = make_batch(pipeline, source.read(indices), indices, seed, epoch=0)
    whole = np.setdiff1d(np.arange(len(indices)), [row for row, _ in failures])
    if not len(whole):
        return None
    device = next(algorithm.parameters()).device
    samples = {name: torch.from_numpy(values[whole]).to(device) for name, values in columns.items()}
    views = [samples.pop(f"view_{i}").permute(0, 3, 1, 2) for i in range(len(pipeline.sizes))]
    with undisturbed(algorithm, device):
        prediction = algorithm(views, samples, mode="predict")
        if isinstance(prediction, Reconstruction):
            return _pixels(algorithm, views[0], prediction)
        if isinstance(algorithm, CAE) and isinstance(prediction, Prediction):
            return _tokens(algorithm, views, samples, prediction)
    return None


def _pixels(algorithm: BaseModel, view: Tensor, prediction: Reconstruction) -> Masked:
    scale, shift = _normalisation(algorithm)
    original = view.float()
    drawn = ((prediction.pred.permute(0, 3, 1, 2).float() + shift) / scale).clamp(0, 255)
    hidden = prediction.mask.permute(0, 3, 1, 2)
    error = (drawn - original).abs()[hidden].mean() if hidden.any() else torch.zeros(())
    note = (
        f"{hidden.float().mean():.0%} of the pixels are hidden. Predictions for them are off by {error:.0f} of 255 "
        "on average; visible patches are not trained for.".replace("%", " %")
    )
    if isinstance(algorithm, MAE) and algorithm.head.norm_pix:
        note += (
            " The network predicts patches with mean 0 and deviation 1; each gets back those of the original patch, "
            "which gives part of the answer away."
        )
    pictures = (original, original.where(~hidden, _GRAY), drawn.where(hidden, original), drawn)
    return Masked(
        ("original", "what it sees", "hidden patches filled in", "prediction of all patches"),
        _rows(pictures),
        note,
    )


def _normalisation(algorithm: BaseModel) -> tuple[Tensor, Tensor]:
    """What uint8 pixels were multiplied with, and what was taken off then."""
    kept = algorithm.data_preprocessor.get_buffer
    return kept("scale"), kept("shift")


def _tokens(
    algorithm: CAE, views: list[Tensor], samples: dict[str, Tensor], prediction: Prediction
) -> Masked:
    """Tokens as the patches that they stand for, where the tokenizer has such; else as shades of right and wrong."""
    original = views[0].float()
    truth = algorithm._tokens(algorithm.data_preprocessor(views), samples).view_as(prediction.tokens)
    hidden = _large(prediction.hidden[:, None].float(), original) > 0.5
    right = (truth == prediction.tokens)[prediction.hidden].float().mean()
    seen = original.where(~hidden, _GRAY)
    note = (
        f"The network names a token for each hidden patch, one of {algorithm.neck.num_tokens}; {right:.0%} of "
        "those here are the very ones. ".replace("%", " %")
    )
    tokenizer = algorithm.tokenizer
    if isinstance(tokenizer, PatchCodebook) and not tokenizer.norm_patch:
        drawn = [_large(_codebook(tokenizer, tokens), original) for tokens in (truth, prediction.tokens)]
        return Masked(
            ("original", "what it sees", "in true tokens", "hidden patches in predicted tokens"),
            _rows((original, seen, drawn[0], drawn[1].where(hidden, original))),
            note + "A token is drawn as the patch that it stands for.",
        )
    wrong = (truth != prediction.tokens) & prediction.hidden
    marked = original.where(_large(wrong[:, None].float(), original) < 0.5, _GRAY)
    return Masked(
        ("original", "what it sees", "patches with a wrong token in gray"),
        _rows((original, seen, marked)),
        note + "Its tokenizer cannot draw what a token stands for.",
    )


def _codebook(tokenizer: PatchCodebook, tokens: Tensor) -> Tensor:
    """Tokens (B, rows, columns) as an image (B, 3, rows * cell, columns * cell) in 0..255."""
    patches = tokenizer.codebook[tokens.flatten(1)].transpose(1, 2)
    side = tokenizer.side * tokenizer.cell_size
    return 255 * F.fold(patches, (side, side), tokenizer.cell_size, stride=tokenizer.cell_size).clamp(0, 1)


def _large(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="nearest")


def _rows(columns: Sequence[Tensor]) -> Rows:
    """Columns of images (B, 3, H, W) in 0..255 as rows of (H, W, 3) uint8."""
    arrays = [c.round().byte().permute(0, 2, 3, 1).cpu().numpy() for c in columns]
    return [list(row) for row in zip(*arrays, strict=True)]
