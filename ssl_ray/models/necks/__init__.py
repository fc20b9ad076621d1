"""Necks: projectors and decoders on top of a backbone."""

from ssl_ray.models.necks.avg_pool2d_neck import AvgPool2dNeck
from ssl_ray.models.necks.cae_neck import CAENeck
from ssl_ray.models.necks.densecl_neck import DenseCLNeck, DenseProjection
from ssl_ray.models.necks.linear_neck import LinearNeck
from ssl_ray.models.necks.mae_pretrain_decoder import MAEPretrainDecoder
from ssl_ray.models.necks.nonlinear_neck import NonLinearNeck
from ssl_ray.models.necks.odc_neck import ODCNeck
from ssl_ray.models.necks.relative_loc_neck import RelativeLocNeck
from ssl_ray.models.necks.simmim_neck import SimMIMNeck
from ssl_ray.models.necks.swav_neck import SwAVNeck

__all__ = [
    "AvgPool2dNeck",
    "CAENeck",
    "DenseCLNeck",
    "DenseProjection",
    "LinearNeck",
    "MAEPretrainDecoder",
    "NonLinearNeck",
    "ODCNeck",
    "RelativeLocNeck",
    "SimMIMNeck",
    "SwAVNeck",
]
