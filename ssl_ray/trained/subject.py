"""The network that a verb looks at: a run, a checkpoint, a file of ours, or one of torchvision's or timm's by name."""

import contextlib
import os
import re
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssl_ray.errors import MISTAKES, UserError, nearest
from ssl_ray.evaluation.features import weights_digest
from ssl_ray.interop.backbone_file import TrainedBackbone
from ssl_ray.models.encoder import Encoder
from ssl_ray.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, DataPreprocessor
from ssl_ray.training.folder import NoRun, RunFolder
from ssl_ray.training.trained import load_trained

TORCHVISION, TIMM = "torchvision:", "timm:"


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode, and where it is from.

    encoder: uint8 images in, features out. name: for files and MLflow. source: in words, whose weights these are.
    image_size: pixels a side that it is meant for. step: optimiser steps of a run's checkpoint. folder: the run's.
    trained: what it takes to train it on; None for others' networks. random: its weights are untrained.
    """

    encoder: nn.Module = field(repr=False)
    name: str
    source: str
    image_size: int
    step: int | None = None
    folder: RunFolder | None = None
    trained: TrainedBackbone | None = field(default=None, repr=False)
    random: bool = False

    @property
    def weights(self) -> str:
        """Digest of all that decides the features of an image."""
        return weights_digest(self.encoder)

    @property
    def convolutional(self) -> bool:
        """True for a network with batch norm over maps (ResNet), False for a transformer."""
        return any(isinstance(module, nn.BatchNorm2d) for module in self.encoder.modules())

    def feature_width(self, size: int) -> int:
        """D of its features at `size` pixels a side. Raises UserError when it does not take such images."""
        try:
            with torch.inference_mode():
                features = self.encoder(torch.zeros(2, 3, size, size, dtype=torch.uint8))
        except MISTAKES as error:
            raise UserError(
                f"size: {self.name} does not take images of {size} x {size} px ({str(error).splitlines()[0]}); "
                f"leave --size out for {self.image_size}"
            ) from error
        if features.ndim != 2:
            raise UserError(f"{self.name}: gives {tuple(features.shape)} and not one vector for each image")
        return int(features.shape[1])


class _Whole(nn.Module):
    """A network that answers with features by itself, as the backbone of an `Encoder`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def embed(self, images: Tensor) -> Tensor:
        """Features (B, D)."""
        features: Tensor = self.module(images)
        return features


def load_subject(name: str, storage: str, *, random: bool = False, seed: int = 0) -> Subject:
    """The network called `name`: see `ssl_ray.training.trained.load_trained`, or `torchvision:resnet18`, `timm:NAME`.

    random: with untrained weights instead, drawn from `seed`: what training has to beat. Raises UserError.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.startswith(TORCHVISION):
            return _torchvision(name, random)
        if name.startswith(TIMM):
            return _timm(name, random)
        return _trained(name, storage, random)


def run_of(name: str, storage: str) -> RunFolder | None:
    """The run's folder where `name` means a run, or a checkpoint in one."""
    for candidate in (name, os.path.dirname(name.rstrip("/"))):
        with contextlib.suppress(NoRun):
            if candidate:
                return RunFolder.find(candidate, storage)
    return None


def _trained(name: str, storage: str, random: bool) -> Subject:
    folder = run_of(name, storage)
    if folder is not None:
        # The recipe may name the user's own modules.
        sys.path += [path for path in folder.record().get("python_path", ()) if path not in sys.path]
    trained = load_trained(name, storage)
    module: nn.Module = trained.architecture.build().eval() if random else trained.module
    return Subject(
        Encoder(module, DataPreprocessor(trained.mean, trained.std)).eval(),
        _slug(folder.name if folder else name) + ("-random" if random else ""),
        f"untrained {trained.architecture}" if random else trained.source,
        trained.image_size,
        0 if random else trained.step,
        folder,
        trained,
        random,
    )


def _torchvision(name: str, random: bool) -> Subject:
    from torchvision import models

    wanted = name.removeprefix(TORCHVISION)
    known = models.list_models(module=models)
    weights: Any = None
    architecture = wanted
    if "." in wanted:  # ResNet50_Weights.IMAGENET1K_V2
        try:
            weights = models.get_weight(wanted)
        except (ValueError, KeyError) as error:
            allowed = [str(w) for model in known for w in models.get_model_weights(model)]
            raise UserError(f"{name}: torchvision has no such weights; {nearest(wanted, allowed)}") from error
        architecture = next(model for model in known if weights in models.get_model_weights(model))
    elif wanted not in known:
        raise UserError(f"{name}: torchvision has no such classifier; {nearest(wanted, known)}")
    else:
        weights = models.get_model_weights(wanted).DEFAULT
    module: nn.Module = models.get_model(architecture, weights=None)
    if not random:
        try:
            module.load_state_dict(weights.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            file = weights.url.rpartition("/")[2]
            where = os.path.join(torch.hub.get_dir(), "checkpoints", file)
            raise UserError(
                f"{name}: its weights are neither at {where} nor can they be downloaded ({_line(error)}); put {file} "
                "there, or use --random for an untrained network"
            ) from error
    _remove_classifier(module, name)
    described = weights.transforms()
    source = f"untrained torchvision {architecture}" if random else f"torchvision {weights}"
    return Subject(
        Encoder(_Whole(module), DataPreprocessor(described.mean, described.std)).eval(),
        _slug(name) + ("-random" if random else ""),
        source,
        described.crop_size[0],
    )


def _remove_classifier(module: nn.Module, name: str) -> None:
    """Puts nothing in place of the last linear layer: what it was given are the features."""
    linear = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise UserError(f"{name}: has no linear classifier to take off; choose another network")
    above, _, last = linear[-1].rpartition(".")
    setattr(module.get_submodule(above), last, nn.Identity())


def _timm(name: str, random: bool) -> Subject:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"{name}: needs a package that is not here; pip install 'ssl-ray[export]'") from error
    wanted = name.removeprefix(TIMM)
    known = timm.list_models()
    if wanted.partition(".")[0] not in known:
        raise UserError(f"{name}: timm has no such model; {nearest(wanted.partition('.')[0], known)}")
    try:
        module: nn.Module = timm.create_model(wanted, pretrained=not random, num_classes=0)
    except Exception as error:  # whatever its hub raises: there are several packages below it
        raise UserError(
            f"{name}: its weights are neither cached nor can they be downloaded ({_line(error)}); fill the cache "
            "(HF_HOME) where there is a network, or use --random for an untrained network"
        ) from error
    data: Any = timm.data
    config = data.resolve_model_data_config(module)
    mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
    return Subject(
        Encoder(_Whole(module), DataPreprocessor(mean, std)).eval(),
        _slug(name) + ("-random" if random else ""),
        f"untrained timm {wanted}" if random else f"timm {wanted}",
        config["input_size"][1],
    )


def _slug(name: str) -> str:
    """A name for a folder: `a/b.safetensors` -> `b`, `torchvision:resnet18` -> `torchvision-resnet18`."""
    last = name.rstrip("/").rpartition("/")[2].removesuffix(".safetensors")
    return re.sub(r"[^A-Za-z0-9._-]", "-", last)


def _line(error: BaseException) -> str:
    """The first line of what went wrong."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
