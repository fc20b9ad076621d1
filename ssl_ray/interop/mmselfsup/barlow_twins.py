"""Barlow Twins of MMSelfSup."""

from ssl_ray.interop.mmselfsup.config import Config, Readers, arguments_of, build_parts, loss_of
from ssl_ray.interop.mmselfsup.correspondence import Correspondence
from ssl_ray.interop.mmselfsup.modules import COMMON
from ssl_ray.models import BarlowTwins, CrossCorrelationLoss, LatentCrossCorrelationHead


def _head(config: Config) -> LatentCrossCorrelationHead:
    arguments = arguments_of(config, {"in_channels": "in_channels"})
    return LatentCrossCorrelationHead(**arguments, loss=loss_of(config, _READERS))


_READERS: Readers = COMMON | {
    "LatentCrossCorrelationHead": _head,
    "CrossCorrelationLoss": lambda config: CrossCorrelationLoss(**arguments_of(config, {"lambd": "lambd"})),
}


def _barlow_twins(config: Config) -> BarlowTwins:
    return BarlowTwins(**build_parts(config, _READERS), **arguments_of(config, {}))


CORRESPONDENCE = Correspondence(_barlow_twins)
