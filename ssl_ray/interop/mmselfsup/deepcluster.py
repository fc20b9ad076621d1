"""DeepCluster of MMSelfSup. Its labels belong to the data set there, and clustering to a hook's config."""

from ssl_ray.interop.mmselfsup.config import Config, Readers, arguments_of, build_parts
from ssl_ray.interop.mmselfsup.correspondence import Correspondence, under
from ssl_ray.interop.mmselfsup.modules import COMMON, resnet_arguments
from ssl_ray.interop.weights.names import MM_SOBEL
from ssl_ray.models import AvgPool2dNeck, DeepCluster, ResNetSobel


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


CORRESPONDENCE = Correspondence(
    _deepcluster,
    lambda model: under("backbone.", MM_SOBEL),
    elsewhere=frozenset({"labels"}),
)
