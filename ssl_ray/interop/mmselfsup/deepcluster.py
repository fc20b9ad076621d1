"""DeepCluster of MMSelfSup. Its labels belong to the data set there, and clustering to a hook's config."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ssl_ray.interop.mmselfsup.config import Config, Readers, arguments_of, build_parts
from ssl_ray.interop.mmselfsup.correspondence import Correspondence
from ssl_ray.interop.mmselfsup.modules import COMMON, resnet_arguments
from ssl_ray.models import AvgPool2dNeck, BaseModel, DeepCluster, ResNetSobel


def _resnet_sobel(config: Config) -> ResNetSobel:
    arguments = resnet_arguments(config)
    arguments.pop("in_channels", None)  # those of the edges, whatever the config says
    return ResNetSobel(**arguments)


def _avg_pool2d_neck(config: Config) -> AvgPool2dNeck:
    return AvgPool2dNeck(**arguments_of(config, {"output_size": "output_size"}))


_READERS: Readers = COMMON | {"ResNetSobel": _resnet_sobel, "AvgPool2dNeck": _avg_pool2d_neck}


def _deepcluster(config: Config) -> DeepCluster:
    """The number of images is not in their config; add `num_samples` to the dict for a model that is to be trained."""
    arguments = {"num_samples": 0, **arguments_of(config, {"num_samples": "num_samples"})}
    return DeepCluster(**build_parts(config, _READERS), **arguments, weights_sum_to_one=True)


def _sobel_layers(model: BaseModel) -> Mapping[str, Tensor]:
    """Their frozen convolutions: the mean of the channels, then both derivatives."""
    if not isinstance(model.backbone, ResNetSobel):
        return {}
    filters = model.backbone.sobel.filters
    layers = ((torch.full((1, 3, 1, 1), 1 / 3), torch.zeros(1)), (filters, torch.zeros(2)))
    return {
        f"backbone.sobel_layer.sobel.{i}.{name}": value
        for i, layer in enumerate(layers)
        for name, value in zip(("weight", "bias"), layer, strict=True)
    }


CORRESPONDENCE = Correspondence(_deepcluster, derived=_sobel_layers, elsewhere=frozenset({"labels"}))
